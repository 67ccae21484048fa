package vring

import (
	"encoding/binary"

	"github.com/vblk-ep/vblk-ep/internal/shm"
)

// Push implements Queue. A used descriptor says WRITE if anything was written,
// and has a length only then (§2.8.3, §2.8.4).
func (q *Packed) Push(c *Chain, written uint32) {
	if q.inFlight == 0 || c.slots == 0 || c.slots > q.ring.between(q.pushed, q.next) {
		panic("vring: pushed a chain that is not in flight")
	}
	slot := q.ring.slot(q.pushed)
	flags := q.ring.used(q.pushed)
	if written > 0 {
		flags |= flagWrite
	}
	d := q.ring.local[slot*descSize:][:descSize]
	binary.LittleEndian.PutUint32(d[packedLen:], written)
	binary.LittleEndian.PutUint16(d[packedID:], c.Head)
	if q.pushed == q.published {
		q.first = flags
	} else {
		binary.LittleEndian.PutUint16(d[packedFlags:], flags)
	}
	q.steps[slot] = uint16(c.slots)
	q.pushed = q.ring.after(q.pushed, c.slots)
	q.journal.push(c, c.slots)
	c.slots = 0
	q.inFlight--
}

// Publish implements Queue: the used descriptors, then the flags of the first,
// then one look at what the driver wants.
func (q *Packed) Publish() (interrupt bool, err error) {
	if q.pushed == q.published && !q.undecided {
		return false, nil
	}
	if q.unresolved != nil {
		return false, q.unresolved
	}
	was := q.published
	if err := q.writeBatch(); err != nil {
		return false, err
	}
	if q.undecided { // and not worth another look: an interrupt too many is legal
		q.undecided = false
		return true, nil
	}
	// The driver writes its event structure, and then looks at the flags of the
	// descriptor; one of the two must see the other.
	q.undecided = true
	shm.Fence()
	if interrupt, err = q.wantsInterrupt(was); err != nil {
		return false, err
	}
	q.undecided = false
	return interrupt, nil
}

// writeBatch makes the batch visible at once. Used descriptors may be written in
// any order, since the driver looks at one place only, the descriptor after the
// last one it found used (§2.8.2): until the flags there change it sees none of
// the batch, and when they do all of it has to be there.
//
// So the flags of the first used descriptor are stored last, by themselves.
// Before that they are written as they were read, which changes nothing, so that
// a row of used descriptors is one transfer. Descriptors that are skipped are
// not written.
func (q *Packed) writeBatch() error {
	if q.published == q.pushed {
		return nil
	}
	q.journal.publishing(q.encoded(q.pushed))
	for at := q.published; at != q.pushed; {
		from := q.ring.slot(at)
		to := from
		for {
			step := int(q.steps[to])
			at = q.ring.after(at, step)
			if step != 1 || at == q.pushed || q.ring.slot(at) == 0 {
				break
			}
			to++
		}
		off, end := from*descSize+packedUsed, (to+1)*descSize
		if err := q.ring.post(off, q.ring.local[off:end], &q.ring.area); err != nil {
			return err
		}
	}
	if err := q.ring.store16(q.ring.slot(q.published)*descSize+packedFlags, q.first); err != nil {
		return err
	}
	q.published = q.pushed
	q.journal.published(q.encoded(q.published))
	return nil
}
