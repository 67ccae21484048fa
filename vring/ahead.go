package vring

import (
	"encoding/binary"

	"github.com/vblk-ep/vblk-ep/internal/shm"
)

// How many chains before it is fetched the parts of a chain are asked for, in the
// order in which one leads to the next. The driver has just written them on another
// processor, so that each would have to be waited for.
const (
	aheadDesc = 6 // its first descriptor
	aheadBuf  = 3 // what that refers to: an indirect table, or the header of a request
)

// Prefetcher is what a Memory may be besides.
type Prefetcher interface {
	// Prefetch says that memory from addr on is going to be read soon. There may be
	// nothing there.
	Prefetch(addr uint64)
}

// ahead asks the processor for parts of the chains that Next will fetch. What it
// reads for that is not validated, for nothing else depends on it.
func (q *Split) ahead() {
	left := q.availIndex - q.nextIndex
	if left <= aheadBuf || q.hints == nil || !q.desc.lent() {
		return
	}
	if left > aheadDesc {
		shm.Prefetch(q.firstDesc(aheadDesc))
	}
	if d := q.firstDesc(aheadBuf); d != nil {
		q.hints.Prefetch(binary.LittleEndian.Uint64(d))
	}
}

// firstDesc returns the first descriptor of the chain n after the next, nil if it
// is out of range.
func (q *Split) firstDesc(n uint16) []byte {
	slot := int(q.nextIndex+n) & (q.cfg.Size - 1)
	head := int(binary.LittleEndian.Uint16(q.heads[slot*availEntrySize:]))
	if head >= q.cfg.Size {
		return nil
	}
	return q.desc.window.Bytes()[head*descSize:][:descSize]
}

// ahead is that of a split virtqueue; descriptors come one after the other here.
func (q *Packed) ahead() {
	if q.hints == nil || q.ring.size <= aheadBuf || !q.ring.lent() {
		return
	}
	at := q.ring.after(q.next, aheadBuf)
	d := q.ring.window.Bytes()[q.ring.slot(at)*descSize:][:descSize]
	if q.ring.laps.available(binary.LittleEndian.Uint16(d[packedFlags:]), at) {
		q.hints.Prefetch(binary.LittleEndian.Uint64(d))
	}
}
