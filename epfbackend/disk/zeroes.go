package disk

import (
	"sync"

	"golang.org/x/sys/unix"
)

const (
	zeroPage  = 64 << 10 // the memory that zeroes are written from
	zeroBatch = 16       // how often one system call writes it
)

// zeroVec lists the same zeroed memory zeroBatch times. It is page-aligned, and
// never written.
var zeroVec = sync.OnceValue(func() []unix.Iovec {
	page, err := unix.Mmap(-1, 0, zeroPage, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		page = make([]byte, zeroPage)
	}
	vec := make([]unix.Iovec, zeroBatch)
	for i := range vec {
		vec[i] = unix.Iovec{Base: &page[0], Len: zeroPage}
	}
	return vec
})

// zeroes returns a vector of at most n bytes of zeroes.
func (io *IO) zeroes(n int64) []unix.Iovec {
	vec := zeroVec()
	if n >= zeroPage {
		return vec[:min(n/zeroPage, zeroBatch)]
	}
	io.lone[0] = vec[0]
	io.lone[0].Len = uint64(n)
	return io.lone[:]
}
