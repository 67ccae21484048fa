package vring

import "fmt"

// tables fetches indirect tables (§2.7.5.3, §2.8.7).
type tables struct {
	mem     Memory
	allowed bool   // the feature was negotiated
	max     int    // descriptors
	defers  int    // bytes, of those that are left to the caller
	local   []byte // of one that cannot be lent
}

// get returns the table that d refers to, in place or copied, valid until the
// next call. It holds a positive number of descriptors. Without one and an error,
// c.Table says where it is.
func (t *tables) get(c *Chain, d desc) ([]byte, error) {
	if err := t.check(d); err != nil {
		return nil, err
	}
	b, err := t.fetch(c, d.addr, int(d.len))
	if err != nil {
		return nil, fmt.Errorf("indirect table of %d bytes at %#x: %w", d.len, d.addr, err)
	}
	return b, nil
}

func (t *tables) check(d desc) error {
	switch {
	case !t.allowed:
		return ErrIndirect
	case d.flags&flagNext != 0:
		return ErrIndirectNext
	case d.len == 0 || d.len%descSize != 0:
		return fmt.Errorf("%w: %d", ErrIndirectLength, d.len)
	case int64(d.len/descSize) > int64(t.max):
		return fmt.Errorf("%w: %d descriptors", ErrIndirectTooLong, d.len/descSize)
	case d.addr+uint64(d.len) < d.addr:
		return ErrAddress
	}
	return nil
}

func (t *tables) fetch(c *Chain, addr uint64, n int) ([]byte, error) {
	b, err := t.mem.Lend(addr, n, Read)
	if err != nil {
		return nil, err
	}
	if len(b) >= n {
		return b[:n], nil
	}
	if n <= t.defers {
		c.Table = Segment{addr, uint32(n)}
		return nil, nil
	}
	if t.local == nil {
		t.local = make([]byte, t.max*descSize)
	}
	b = t.local[:n]
	return b, t.mem.ReadAt(b, addr)
}
