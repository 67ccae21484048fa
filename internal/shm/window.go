package shm

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// Window is a range of shared memory. It is a view: it owns nothing, and is
// valid as long as the memory behind it stays mapped. The zero Window is empty.
//
// Accesses must be naturally aligned in memory and lie inside the window;
// anything else is a bug of the caller and panics, so callers check
// what comes from a peer first. Values are little-endian, as both machines we
// build for (amd64, arm64) are.
type Window struct{ b []byte }

// Of returns the window over b.
func Of(b []byte) Window { return Window{b} }

// Len returns the length of the window in bytes.
func (w Window) Len() int { return len(w.b) }

// Slice returns the window over n bytes of w from off on.
func (w Window) Slice(off, n int) Window { return Window{w.b[off : off+n : off+n]} }

// Bytes returns the memory itself, for plain (unordered) access.
func (w Window) Bytes() []byte { return w.b }

// Aligned reports whether the first byte lies at a multiple of n, a power of two.
// Memory that a peer laid out may start anywhere.
func (w Window) Aligned(n int) bool {
	return len(w.b) == 0 || uintptr(unsafe.Pointer(&w.b[0]))&uintptr(n-1) == 0
}

// Offset returns where part lies in whole; false if it does not lie there with all of
// its bytes.
func Offset(whole, part []byte) (int, bool) {
	if len(part) == 0 || len(part) > len(whole) {
		return 0, false
	}
	off := uintptr(unsafe.Pointer(&part[0])) - uintptr(unsafe.Pointer(&whole[0]))
	return int(off), off <= uintptr(len(whole)-len(part))
}

// Load16 is an acquiring load: what was stored before the value was, is seen
// after it.
func (w Window) Load16(off int) uint16 {
	return load16(w.half(off))
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
	store16(w.half(off), v)
}

// CompareAndSwap32 stores new if the word is old, and says whether it was.
func (w Window) CompareAndSwap32(off int, old, new uint32) bool {
	return atomic.CompareAndSwapUint32(w.word(off), old, new)
}

// Read copies len(p) bytes at off to p. Two or four bytes that are naturally
// aligned are one acquiring load, as they would be one read on a bus; longer
// copies have no order within themselves.
func (w Window) Read(p []byte, off int) {
	switch part := (Window{w.b[off : off+len(p)]}); {
	case len(p) == 2 && part.Aligned(2):
		binary.LittleEndian.PutUint16(p, part.Load16(0))
	case len(p) == 4 && part.Aligned(4):
		binary.LittleEndian.PutUint32(p, part.Load32(0))
	default:
		copy(p, part.b)
	}
}

// Write copies p to off. Two or four bytes that are naturally aligned are one
// releasing store, as they would be one write on a bus; longer copies have no
// order within themselves.
func (w Window) Write(off int, p []byte) {
	switch part := (Window{w.b[off : off+len(p)]}); {
	case len(p) == 2 && part.Aligned(2):
		part.Store16(0, binary.LittleEndian.Uint16(p))
	case len(p) == 4 && part.Aligned(4):
		part.Store32(0, binary.LittleEndian.Uint32(p))
	default:
		copy(part.b, p)
	}
}

// Fence orders every access before it ahead of every access after it, stores
// before loads included. That is what neither a releasing store nor an
// acquiring load gives, and what a device needs between "I am about to sleep"
// and "is there more?".
func Fence() { fence() }

// Pause is for loops that wait for memory to change: it tells the processor so,
// which then spends less on it and leaves more to the core's other thread.
func Pause() { pause() }

// Prefetch asks the processor to bring the first bytes of b near, because they are
// going to be read soon. It reads nothing, and cannot fault.
func Prefetch(b []byte) { prefetch(unsafe.SliceData(b)) }

func (w Window) word(off int) *uint32 {
	_ = w.b[off+3]
	p := unsafe.Pointer(&w.b[off])
	if uintptr(p)&3 != 0 {
		panic("shm: misaligned 32-bit access")
	}
	return (*uint32)(p)
}

func (w Window) half(off int) *uint16 {
	_ = w.b[off+1]
	p := unsafe.Pointer(&w.b[off])
	if uintptr(p)&1 != 0 {
		panic("shm: misaligned 16-bit access")
	}
	return (*uint16)(p)
}
