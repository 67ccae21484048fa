package vring

// OnStore has f called after each store to the journal of a queue.
func OnStore(q Queue, f func()) {
	switch q := q.(type) {
	case *Split:
		q.journal.stored = f
	case *Packed:
		q.journal.stored = f
	}
}
