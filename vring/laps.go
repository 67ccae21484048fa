package vring

// laps does arithmetic on positions in a packed ring of the given size. A
// position counts descriptors through two laps, from 0 to 2×size-1: it is a slot
// of the ring together with the wrap counter, which is 1 in the first lap and 0
// in the second (§2.8.1).
type laps struct{ size int }

func (l laps) slot(p int) int {
	if p >= l.size {
		return p - l.size
	}
	return p
}

// after returns the position n descriptors after p; n is at most 2×size.
func (l laps) after(p, n int) int {
	if p += n; p >= 2*l.size {
		p -= 2 * l.size
	}
	return p
}

// between returns how many descriptors lie from one position to another.
func (l laps) between(from, to int) int {
	if to < from {
		to += 2 * l.size
	}
	return to - from
}

// wrapBit is the wrap counter in an encoded position.
const wrapBit = 1 << 15

// encode returns p as event suppression structures have it: the slot, and the
// wrap counter (§2.8.14).
func (l laps) encode(p int) uint16 {
	v := uint16(l.slot(p))
	if p < l.size {
		v |= wrapBit
	}
	return v
}

// decode is the opposite of encode. What the other side wrote may be no position.
func (l laps) decode(v uint16) int {
	p := int(v &^ wrapBit)
	if v&wrapBit == 0 {
		p += l.size
	}
	return p
}

// Bits of a packed descriptor's flags that tell whose it is (§2.8.1).
const (
	flagAvail = 1 << 7
	flagUsed  = 1 << 15
)

// available says whether flags are those of a descriptor that the driver made
// available at p: AVAIL is the wrap counter, and USED is not.
func (l laps) available(flags uint16, p int) bool {
	want := uint16(flagAvail)
	if p >= l.size {
		want = flagUsed
	}
	return flags&(flagAvail|flagUsed) == want
}

// used returns the flags of a used descriptor at p: both bits are the wrap
// counter.
func (l laps) used(p int) uint16 {
	if p >= l.size {
		return 0
	}
	return flagAvail | flagUsed
}

// fresh returns the flags of an available descriptor at p.
func (l laps) fresh(p int) uint16 { return l.used(p) ^ flagUsed }
