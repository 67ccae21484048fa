package vring

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vblk-ep/vblk-ep/internal/shm"
)

// Layout of a journal: four words, a count for each descriptor of the ring, and as many
// descriptors, little-endian. A position is what Config.Start is.
const (
	journalFetched  = 0x00 // u32: position after the last chain fetched; its entry << 16
	journalFetching = 0x04 // u32: the same, of the chain that is being entered
	journalUsed     = 0x08 // u16: position up to which used chains were published
	journalUsing    = 0x0c // u16: up to which they are being published
	journalCounts   = 0x10 // u16 each

	// A count is that of the descriptors of a chain in flight that begins with this
	// entry, 0 if none does.
	journalBatch = 1 << 15 // the chain is in the batch that is published next
	journalMax   = 1 << 12 // entries: 72 KiB, more than controllers keep; a count can be up to 1<<15 - 1
)

// ErrJournal reports a journal that no queue of that size and format can have left.
var ErrJournal = errors.New("the journal of the queue makes no sense")

// JournalLen returns the length in bytes of the journal of a queue of that many
// descriptors, a multiple of 16; 0 if it is too large to have one.
func JournalLen(size int) int {
	if size > journalMax {
		return 0
	}
	return journalDescs(size) + size*descSize
}

// journalDescs returns where the descriptors are.
func journalDescs(size int) int { return (journalCounts + 2*size + 15) &^ 15 }

// journal notes, in memory that outlives the process, which chains are in flight, and
// where the ring is, so that another process can go on from there, wherever this one
// was cut short:
//
//	fetch    descriptors; fetching; the chain's count; fetched
//	push     the chain's count, as one of the batch
//	publish  using; the batch in host memory, its index (or the flags of its first
//	         descriptor) last; the counts of its chains: 0; used
//
// So a chain whose fetch was cut short is that of fetching, as long as this differs from
// fetched: positions differ from one chain to the next. And a batch whose publishing
// was cut short is either all in host memory or not at all, which the one place tells
// that is written last. It is looked at before anything more is published, so the
// driver can have made available there at most what comes a lap later.
//
// The order of stores is that of the program. The next process sees all that this one
// stored before it ended, whatever the processor.
//
// A chain in a split virtqueue stays in the descriptor table until it is used, and its
// entry is its head. Descriptors of a packed one may be overwritten by used ones, so
// they are copied, as they are in the ring. Indirect tables stay where they are, in
// both. The ID of a descriptor with NEXT set means nothing, and holds the entry of the
// next here.
type journal struct {
	w      shm.Window // empty: there is none
	descs  int        // offset
	size   int
	free   []uint16 // entries that are not used
	link   []uint16 // by entry: that of the chain's next descriptor
	batch  []run    // the chains in the batch
	stored func()   // for tests: called after each store
}

// run is the entries of a chain.
type run struct {
	first uint16
	count int
}

// newJournal returns the journal that b is, nil for none.
func newJournal(b []byte, size int) (*journal, error) {
	j := &journal{size: size, descs: journalDescs(size)}
	if b == nil {
		return j, nil
	}
	if n := JournalLen(size); n == 0 || len(b) < n || !shm.Of(b).Aligned(8) {
		return nil, fmt.Errorf("journal of %d bytes for %d descriptors: %w", len(b), size, ErrJournal)
	}
	j.w = shm.Of(b[:JournalLen(size)])
	j.free = make([]uint16, size)
	for i := range j.free {
		j.free[i] = uint16(size - 1 - i)
	}
	j.link = make([]uint16, size)
	j.batch = make([]run, 0, size)
	return j, nil
}

// clear makes it that of a queue at start with nothing in flight.
func (j *journal) clear(start uint16) {
	if !j.on() {
		return
	}
	clear(j.w.Bytes()[journalCounts:j.descs])
	for _, off := range [...]int{journalFetched, journalFetching, journalUsed, journalUsing} {
		j.w.Store32(off, uint32(start))
	}
}

func (j *journal) on() bool { return j.w.Len() != 0 }

func (j *journal) count(e uint16) int { return journalCounts + 2*int(e) }

// desc returns the descriptor of an entry.
func (j *journal) desc(e uint16) []byte { return j.w.Bytes()[j.descs+int(e)*descSize:][:descSize] }

func (j *journal) store32(off int, v uint32) {
	j.w.Store32(off, v)
	if j.stored != nil {
		j.stored()
	}
}

func (j *journal) store16(off int, v uint16) {
	j.w.Store16(off, v)
	if j.stored != nil {
		j.stored()
	}
}

// take returns an entry that is free. There are as many as the ring has descriptors,
// and no more than that are in flight or not published.
func (j *journal) take() uint16 {
	e := j.free[len(j.free)-1]
	j.free = j.free[:len(j.free)-1]
	return e
}

// fetchHead enters a chain of a split virtqueue, after which the ring is at next.
func (j *journal) fetchHead(c *Chain, next uint16) {
	if !j.on() {
		return
	}
	c.entry = j.take()
	binary.LittleEndian.PutUint16(j.desc(c.entry)[packedID:], c.Head)
	j.enter(c.entry, 1, next)
}

// fetchDescs enters a chain of a packed ring, which is at that position and was read,
// after which the ring is at next.
func (j *journal) fetchDescs(c *Chain, r *packedRing, at int, next uint16) {
	if !j.on() {
		return
	}
	c.entry = j.take()
	for i, e := 0, c.entry; i < c.slots; i++ {
		d := j.desc(e)
		copy(d, r.local[r.slot(r.after(at, i))*descSize:][:descSize])
		if i+1 < c.slots {
			j.link[e] = j.take()
			e = j.link[e]
			binary.LittleEndian.PutUint16(d[packedID:], e)
		}
	}
	j.enter(c.entry, c.slots, next)
}

func (j *journal) enter(e uint16, count int, next uint16) {
	at := uint32(next) | uint32(e)<<16
	j.store32(journalFetching, at)
	j.store16(j.count(e), uint16(count))
	j.store32(journalFetched, at)
}

// push notes that a chain of that many descriptors is in the batch.
func (j *journal) push(c *Chain, count int) {
	if j.on() {
		j.store16(j.count(c.entry), uint16(count)|journalBatch)
		j.batch = append(j.batch, run{c.entry, count})
	}
}

// publishing notes that the batch is about to be published, up to a position.
func (j *journal) publishing(to uint16) {
	if j.on() {
		j.store32(journalUsing, uint32(to))
	}
}

// published notes that it was.
func (j *journal) published(to uint16) {
	if !j.on() {
		return
	}
	for _, r := range j.batch {
		j.store16(j.count(r.first), 0)
		for e, i := r.first, 0; i < r.count; i++ {
			j.free = append(j.free, e)
			e = j.link[e]
		}
	}
	j.batch = j.batch[:0]
	j.store32(journalUsed, uint32(to))
}

// inherited is what a journal tells of the queue that has left it.
type inherited struct {
	next, used uint16   // positions
	entries    []uint16 // first entries of chains in flight
	slots      int      // descriptors of these
}

// recover reads what was left. published says whether the batch whose publishing was cut
// short, from one position up to another, is in host memory. What is found is checked:
// each entry is one of one chain at most.
func (j *journal) recover(packed bool, published func(from, to uint16) (bool, error)) (*inherited, error) {
	fetched, fetching := j.w.Load32(journalFetched), j.w.Load32(journalFetching)
	from, to := uint16(j.w.Load32(journalUsed)), uint16(j.w.Load32(journalUsing))
	in := &inherited{next: uint16(fetched), used: from}
	visible := false
	if from != to {
		var err error
		if visible, err = published(from, to); err != nil {
			return nil, err
		}
		if visible {
			in.used = to
		}
	}
	if e := uint16(fetching >> 16); fetching != fetched && int(e) < j.size {
		j.store16(j.count(e), 0)
	}
	taken := make([]bool, j.size)
	for e := range uint16(j.size) {
		v := j.w.Load16(j.count(e))
		count := int(v &^ journalBatch)
		switch {
		case v == 0:
			continue
		case v&journalBatch != 0 && visible:
			j.store16(j.count(e), 0)
			continue
		case !j.owns(e, count, packed, taken):
			return nil, fmt.Errorf("chain of %d descriptors at entry %d: %w", count, e, ErrJournal)
		}
		in.entries = append(in.entries, e)
		in.slots += count
	}
	j.free = j.free[:0]
	for e := range taken {
		if !taken[e] {
			j.free = append(j.free, uint16(e))
		}
	}
	return in, nil
}

// owns takes the entries of a chain, and says whether they can be.
func (j *journal) owns(e uint16, count int, packed bool, taken []bool) bool {
	if count == 0 || !packed && count != 1 {
		return false
	}
	for i := range count {
		if int(e) >= j.size || taken[e] {
			return false
		}
		taken[e] = true
		d := decodePacked(j.desc(e))
		if packed && (d.flags&flagNext != 0) != (i+1 < count) {
			return false
		}
		if i+1 < count {
			j.link[e] = d.id
			e = d.id
		}
	}
	return true
}

// resumed notes that all that was in flight is in flight again: after it the journal is
// as if nothing had been cut short.
func (j *journal) resumed(in *inherited) {
	for _, e := range in.entries {
		off := j.count(e)
		if v := j.w.Load16(off); v&journalBatch != 0 {
			j.store16(off, v&^journalBatch)
		}
	}
	j.store32(journalFetching, j.w.Load32(journalFetched))
	// While these differ, chains in the batch are gone if it is in host memory, and
	// there are none.
	j.store32(journalUsed, uint32(in.used))
	j.store32(journalUsing, uint32(in.used))
}
