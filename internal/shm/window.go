package shm

import (
	"sync/atomic"
	"unsafe"
)

// Window is a range of shared memory. It is a view: it owns nothing, and is
// valid as long as the memory behind it stays mapped. The zero Window is empty.
//
// Offsets must be naturally aligned for the width of the access and lie inside
// the window; anything else is a bug of the caller and panics, so callers check
// what comes from a peer first. Values are little-endian, as both machines we
// build for (amd64, arm64) are.
type Window struct{ b []byte }

// Of returns the window over b, whose first byte must be aligned to 4 bytes for
// 16- and 32-bit accesses, and to 8 bytes for 64-bit ones.
func Of(b []byte) Window { return Window{b} }

// Len returns the length of the window in bytes.
func (w Window) Len() int { return len(w.b) }

// Bytes returns the memory itself, for plain (unordered) access.
func (w Window) Bytes() []byte { return w.b }

// Load16 is an acquiring load: what was stored before the value was, is seen
// after it. Go has no 16-bit atomics, so the aligned word around it is loaded.
func (w Window) Load16(off int) uint16 {
	word := w.Load32(off &^ 3)
	if off&2 != 0 {
		return uint16(word >> 16)
	}
	return uint16(word)
}

// Load32 is an acquiring load.
func (w Window) Load32(off int) uint32 {
	return atomic.LoadUint32(w.word(off))
}

// Store32 is a releasing store: what was stored before is seen by whoever sees
// the value.
func (w Window) Store32(off int, v uint32) {
	atomic.StoreUint32(w.word(off), v)
}

// Store16 is a releasing store of 16 bits; the neighbouring 16 bits, which may
// belong to the other side, are not touched.
func (w Window) Store16(off int, v uint16) {
	_ = w.b[off+1]
	if off&1 != 0 {
		panic("shm: misaligned 16-bit store")
	}
	store16((*uint16)(unsafe.Pointer(&w.b[off])), v)
}

// Fence orders every access before it ahead of every access after it, stores
// before loads included. That is what neither a releasing store nor an
// acquiring load gives, and what a device needs between "I am about to sleep"
// and "is there more?".
func Fence() { fence() }

func (w Window) word(off int) *uint32 {
	_ = w.b[off+3]
	p := unsafe.Pointer(&w.b[off])
	if uintptr(p)&3 != 0 {
		panic("shm: misaligned 32-bit access")
	}
	return (*uint32)(p)
}
