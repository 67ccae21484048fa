package vring

import "fmt"

// Format is the layout of a virtqueue.
type Format uint8

// Formats.
const (
	Undecided Format = iota
	SplitFormat
	PackedFormat
)

func (f Format) String() string {
	switch f {
	case Undecided:
		return "undecided"
	case SplitFormat:
		return "split"
	case PackedFormat:
		return "packed"
	}
	return fmt.Sprintf("format %d", uint8(f))
}

// FormatEvidence tells the layout of a virtqueue that the driver set up, where
// what it negotiated is not known, from what lies at the addresses of its
// descriptor and driver areas. Undecided says that nothing was made available
// yet.
//
// The flags of the first descriptor decide. In a packed ring whose first lap has
// not ended they are AVAIL without USED and no reserved bit. What stands there in
// a split one is the number of the descriptor after the first, which is small in
// the first chain of each driver known. Otherwise an available index that moved
// makes the ring split.
//
// Ask when the driver notified the device for the first time, and before
// anything was used. Sooner, a packed ring in which the driver disabled
// interrupts before it made anything available would pass for a split one; later
// the first descriptor may have been overwritten.
//
// Each place is read once, and the ring is not changed. Errors are
// ErrRingAddress and those of Memory.
func FormatEvidence(mem Memory, desc, driver uint64) (Format, error) {
	ring := area{mem: mem, name: "first descriptor", addr: desc, len: descSize, align: 16, access: Read}
	avail := area{mem: mem, name: "driver area", addr: driver, len: eventSize, align: 2, access: Read}
	for _, a := range []*area{&ring, &avail} {
		if err := a.check(); err != nil {
			return Undecided, err
		}
		if err := a.resolve(); err != nil {
			return Undecided, err
		}
	}
	// The index first: what a driver of a split ring wrote before is seen then.
	index, err := avail.load16(availIndex)
	if err != nil {
		return Undecided, err
	}
	flags, err := ring.load16(packedFlags)
	switch {
	case err != nil:
		return Undecided, err
	case flags&^(flagNext|flagWrite|flagIndirect) == flagAvail:
		return PackedFormat, nil
	case index != 0:
		return SplitFormat, nil
	}
	return Undecided, nil
}
