package vring

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Layout of a descriptor (§2.7.5, struct virtq_desc), in bytes.
const (
	descAddr  = 0x00 // u64
	descLen   = 0x08 // u32
	descFlags = 0x0c // u16
	descNext  = 0x0e // u16
	descSize  = 16
)

// Bits of a descriptor's flags.
const (
	flagNext     = 1 << 0 // the chain goes on
	flagWrite    = 1 << 1 // for the device to write
	flagIndirect = 1 << 2 // the buffer is a table of descriptors
)

type desc struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// decodeDesc copies a descriptor out of memory that may change, so that what is
// validated is what is used.
func decodeDesc(b []byte) desc {
	raw := [descSize]byte(b)
	return desc{
		addr:  binary.LittleEndian.Uint64(raw[descAddr:]),
		len:   binary.LittleEndian.Uint32(raw[descLen:]),
		flags: binary.LittleEndian.Uint16(raw[descFlags:]),
		next:  binary.LittleEndian.Uint16(raw[descNext:]),
	}
}

// add appends the part of the buffer that d describes. Parts of no length are
// legal (nothing forbids them), and left out.
func (c *Chain) add(d desc, maxChain int) error {
	if c.count++; c.count > maxChain {
		return ErrTooLong
	}
	write := d.flags&flagWrite != 0
	if !write && len(c.segments) > c.readable {
		return ErrOrder
	}
	if d.len == 0 {
		return nil
	}
	if d.addr > math.MaxUint64-uint64(d.len) {
		return ErrAddress
	}
	c.segments = append(c.segments, Segment{d.addr, d.len})
	if write {
		c.WritableLen += uint64(d.len)
	} else {
		c.readable++
		c.ReadableLen += uint64(d.len)
	}
	return nil
}

// finish completes a chain whose last descriptor was added. An error is about
// the chain, not about the ring.
func (c *Chain) finish() error {
	c.split()
	switch {
	case len(c.segments) == 0:
		return ErrEmpty
	case c.ReadableLen+c.WritableLen > math.MaxUint32:
		return ErrLength
	}
	return nil
}

// fetched is what Next returns of a chain.
func (c *Chain) fetched() (ok bool, err error) {
	if c.Table.Len > 0 {
		return true, nil
	}
	return c.finished()
}

// finished is fetched for a chain that is whole.
func (c *Chain) finished() (ok bool, err error) {
	if err := c.finish(); err != nil {
		return true, fmt.Errorf("chain %d: %w", c.Head, err)
	}
	return true, nil
}

// readAhead is how many descriptors one transfer brings from a table that cannot
// be lent, a power of two; in a packed ring, how many beyond those that are known to be there.
const readAhead = 32

// table is the descriptor table. Where it cannot be lent, descriptors are read
// some at a time into a local copy. A copy serves only the chains that were made
// available before it was read, so it is dropped when the available index is
// read again: the driver may have reused descriptors since.
type table struct {
	area
	size  int
	local []byte
	read  []uint32 // per descriptor: the round in which the local copy was read
	round uint32
}

func (t *table) resolve() error {
	if err := t.area.resolve(); err != nil {
		return err
	}
	if !t.lent() && t.local == nil {
		t.local = make([]byte, t.size*descSize)
		t.read = make([]uint32, t.size)
	}
	t.forget()
	return nil
}

// forget drops the local copies.
func (t *table) forget() {
	if t.round++; t.round == 0 {
		clear(t.read)
		t.round = 1
	}
}

// get returns descriptor i, which is in range.
func (t *table) get(i uint16) (desc, error) {
	off := int(i) * descSize
	if t.lent() {
		return decodeDesc(t.window.Bytes()[off:]), nil
	}
	if t.read[i] != t.round {
		// A block around it: a driver that takes the descriptor it freed last goes
		// through its table in either direction.
		start := int(i) &^ (readAhead - 1)
		end := min(start+readAhead, t.size)
		if err := t.area.read(t.local[start*descSize:end*descSize], start*descSize); err != nil {
			return desc{}, err
		}
		for j := start; j < end; j++ {
			t.read[j] = t.round
		}
	}
	return decodeDesc(t.local[off:]), nil
}
