package vring

import (
	"encoding/binary"
	"fmt"

	"github.com/vblk-ep/vblk-ep/internal/shm"
)

// area is one of the parts of a ring in host memory. Where all of it can be
// lent, accesses go straight there; elsewhere each is a transfer. The caller
// sees no difference but the price, so it copies in batches.
type area struct {
	mem    Memory
	name   string
	addr   uint64
	len    int
	align  int
	access Access

	window shm.Window // empty: transfers
	word   [4]byte    // of a short transfer
}

// check validates what the driver wrote into the address register.
func (a *area) check() error {
	if a.addr&uint64(a.align-1) != 0 || a.addr+uint64(a.len) < a.addr {
		return fmt.Errorf("%s of %d bytes at %#x: %w", a.name, a.len, a.addr, ErrRingAddress)
	}
	return nil
}

// resolve finds the area in host memory. Memory that lies at an odd place in our
// address space cannot be accessed atomically there, and is reached by transfers.
func (a *area) resolve() error {
	a.window = shm.Window{}
	b, err := a.mem.Lend(a.addr, a.len, a.access)
	if err != nil {
		return a.fail(err)
	}
	if len(b) >= a.len && shm.Of(b).Aligned(a.align) {
		a.window = shm.Of(b[:a.len])
	}
	return nil
}

func (a *area) lent() bool { return a.window.Len() != 0 }

func (a *area) load16(off int) (uint16, error) {
	if a.lent() {
		return a.window.Load16(off), nil
	}
	b := a.word[:2]
	err := a.read(b, off)
	return binary.LittleEndian.Uint16(b), err
}

func (a *area) load32(off int) (uint32, error) {
	if a.lent() {
		return a.window.Load32(off), nil
	}
	b := a.word[:4]
	err := a.read(b, off)
	return binary.LittleEndian.Uint32(b), err
}

func (a *area) store16(off int, v uint16) error {
	if a.lent() {
		a.window.Store16(off, v)
		return nil
	}
	b := a.word[:2]
	binary.LittleEndian.PutUint16(b, v)
	return a.write(off, b)
}

// post16 and post32 are for single accesses.
func (a *area) post16(off int, v uint16, next *area) error {
	if a.lent() {
		return a.store16(off, v)
	}
	b := a.word[:2]
	binary.LittleEndian.PutUint16(b, v)
	return a.post(off, b, next)
}

func (a *area) post32(off int, v uint32, next *area) error {
	if a.lent() {
		return a.store32(off, v)
	}
	b := a.word[:4]
	binary.LittleEndian.PutUint32(b, v)
	return a.post(off, b, next)
}

func (a *area) store32(off int, v uint32) error {
	if a.lent() {
		a.window.Store32(off, v)
		return nil
	}
	b := a.word[:4]
	binary.LittleEndian.PutUint32(b, v)
	return a.write(off, b)
}

func (a *area) read(p []byte, off int) error {
	if a.lent() {
		copy(p, a.window.Bytes()[off:off+len(p)])
		return nil
	}
	if err := a.mem.ReadAt(p, a.addr+uint64(off)); err != nil {
		return a.fail(err)
	}
	return nil
}

func (a *area) write(off int, p []byte) error {
	if a.lent() {
		copy(a.window.Bytes()[off:off+len(p)], p)
		return nil
	}
	if err := a.mem.WriteAt(p, a.addr+uint64(off)); err != nil {
		return a.fail(err)
	}
	return nil
}

// post is a write of what may be written several times, and no sooner than next is
// accessed.
func (a *area) post(off int, p []byte, next *area) error {
	poster, ok := a.mem.(Poster)
	if a.lent() || next.lent() || !ok {
		return a.write(off, p)
	}
	if err := poster.Post(p, a.addr+uint64(off)); err != nil {
		return a.fail(err)
	}
	return nil
}

func (a *area) fail(err error) error {
	return fmt.Errorf("%s of %d bytes at %#x: %w", a.name, a.len, a.addr, err)
}

// span calls f for the one or two stretches of a ring of size slots (a power of
// two) that hold the count slots from index on, with the first slot of each.
func span(size int, index uint16, count int, f func(slot, n int) error) error {
	slot := int(index) & (size - 1)
	first := min(count, size-slot)
	if err := f(slot, first); err != nil || first == count {
		return err
	}
	return f(0, count-first)
}
