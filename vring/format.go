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
// makes the ring split. A small one must be confirmed by the descriptor that its
// first entry names, which has to be readable and one of several, or a table, as the
// first of each virtio-blk request is: where the index would be, a driver of a packed
// ring says that it wants no interrupts, perhaps before it makes anything available.
// (Where the flags would be is then its first buffer ID: 0 in each driver known.)
//
// Ask before anything was used: later the first descriptor may have been
// overwritten.
//
// Each place is read once, and the ring is not changed. Errors are
// ErrRingAddress and those of Memory.
func FormatEvidence(mem Memory, desc, driver uint64) (Format, error) {
	ring := area{mem: mem, name: "first descriptor", addr: desc, len: descSize, align: 16, access: Read}
	avail := area{mem: mem, name: "driver area", addr: driver, len: eventSize, align: 2, access: Read}
	if err := reach(&ring, &avail); err != nil {
		return Undecided, err
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
	case index > eventDesc:
		return SplitFormat, nil
	case index != 0:
		return splitEvidence(mem, desc, driver)
	}
	return Undecided, nil
}

// splitEvidence looks whether the first entry of an available ring names the first
// descriptor of a chain.
func splitEvidence(mem Memory, desc, driver uint64) (Format, error) {
	entry := area{mem: mem, name: "available entry", addr: driver + availRing, len: 2, align: 2, access: Read}
	if err := reach(&entry); err != nil {
		return Undecided, err
	}
	head, err := entry.load16(0)
	if err != nil {
		return Undecided, err
	}
	named := area{
		mem: mem, name: "first available descriptor", addr: desc + uint64(head)*descSize,
		len: descSize, align: 16, access: Read,
	}
	if err := reach(&named); err != nil {
		return Undecided, err
	}
	if flags, err := named.load16(descFlags); err != nil || flags != flagNext && flags != flagIndirect {
		return Undecided, err
	}
	return SplitFormat, nil
}

func reach(areas ...*area) error {
	for _, a := range areas {
		if err := a.check(); err != nil {
			return err
		}
		if err := a.resolve(); err != nil {
			return err
		}
	}
	return nil
}
