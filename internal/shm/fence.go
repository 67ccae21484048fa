//go:build amd64 || arm64

package shm

// fence is a full memory barrier.
//
//go:noescape
func fence()

// store16 stores v at p with release ordering.
//
//go:noescape
func store16(p *uint16, v uint16)
