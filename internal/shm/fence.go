//go:build amd64 || arm64

package shm

// fence is a full memory barrier.
//
//go:noescape
func fence()

// pause takes some ten nanoseconds.
//
//go:noescape
func pause()

// prefetch touches nothing, so p may be anything.
//
//go:noescape
func prefetch(p *byte)

// store16 stores v at p with release ordering.
//
//go:noescape
func store16(p *uint16, v uint16)

// load16 loads from p with acquire ordering. Go has no 16-bit atomics.
//
//go:noescape
func load16(p *uint16) uint16
