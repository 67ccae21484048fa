package vring

import "encoding/binary"

// Layout of a packed descriptor (§2.8.13, struct pvirtq_desc), in bytes. What
// the device writes into a used one stands together at the end.
const (
	packedAddr  = 0x00 // u64
	packedLen   = 0x08 // u32
	packedID    = 0x0c // u16
	packedFlags = 0x0e // u16
	packedUsed  = packedLen
)

type packedDesc struct {
	desc
	id uint16
}

// decodePacked copies a descriptor out of memory that may change.
func decodePacked(b []byte) packedDesc {
	raw := [descSize]byte(b)
	return packedDesc{
		desc: desc{
			addr:  binary.LittleEndian.Uint64(raw[packedAddr:]),
			len:   binary.LittleEndian.Uint32(raw[packedLen:]),
			flags: binary.LittleEndian.Uint16(raw[packedFlags:]),
		},
		id: binary.LittleEndian.Uint16(raw[packedID:]),
	}
}

// packedRing is the descriptor ring, with a local copy of what the device knows
// to be there: descriptors in flight as they were read, and over them used ones
// as they will be written.
//
// A chain may be read when its first descriptor was seen to be available, and not
// sooner: the driver writes that descriptor's flags after everything else. Of
// descriptors that cannot be lent, flags are looked at and then, in a second
// transfer, whole descriptors are copied: those that were seen, and some after
// them. Of the latter only the flags can be trusted, and say what the next copy
// is good for; so a long row of chains takes one transfer for many.
type packedRing struct {
	area
	laps
	local []byte

	// Counted from the first descriptor that was not fetched:
	seen  int // were seen to be available, before ahead was copied
	ahead int // have a local copy; 0 where the ring is lent
}

func (r *packedRing) resolve() error {
	r.seen, r.ahead = 0, 0
	return r.area.resolve()
}

// available reports whether a chain can be read at p, the first position that
// was not fetched.
func (r *packedRing) available(p int) (bool, error) {
	if r.seen > 0 {
		return true, nil
	}
	r.seen, r.ahead = r.countAvailable(p), 0
	if r.seen > 0 {
		return true, nil
	}
	flags, err := r.load16(r.slot(p)*descSize + packedFlags)
	if err != nil || !r.laps.available(flags, p) {
		return false, err
	}
	r.seen = 1
	return true, nil
}

// countAvailable returns how many descriptors from p on are available as the
// local copy has them.
func (r *packedRing) countAvailable(p int) (n int) {
	for ; n < r.ahead; n++ {
		at := r.after(p, n)
		flags := binary.LittleEndian.Uint16(r.local[r.slot(at)*descSize+packedFlags:])
		if !r.laps.available(flags, at) {
			break
		}
	}
	return n
}

// get returns descriptor i of the chain at p. The descriptors before it were
// got; room is how many there are from p on whose local copy may be overwritten.
func (r *packedRing) get(p, i, room int) (packedDesc, error) {
	slot := r.slot(r.after(p, i))
	off := slot * descSize
	if r.lent() {
		copy(r.local[off:off+descSize], r.window.Bytes()[off:])
	} else if i >= r.ahead {
		n := min(max(r.seen-i, 0)+readAhead, room-i, r.size-slot)
		if err := r.read(r.local[off:off+n*descSize], off); err != nil {
			return packedDesc{}, err
		}
		r.ahead = i + n
	}
	return decodePacked(r.local[off:]), nil
}

// fetched moves on by the n descriptors of a chain.
func (r *packedRing) fetched(n int) {
	r.seen = max(r.seen-n, 0)
	r.ahead = max(r.ahead-n, 0)
}

// forget makes the local copy at p that of a descriptor in flight of which nothing else
// is known.
func (r *packedRing) forget(p int) {
	binary.LittleEndian.PutUint16(r.local[r.slot(p)*descSize+packedFlags:], r.laps.fresh(p))
}
