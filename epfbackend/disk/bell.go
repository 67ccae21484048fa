package disk

import (
	"github.com/vblk-ep/vblk-ep/internal/blkio"
	"golang.org/x/sys/unix"
)

// bell is the reading side of an eventfd; with an fd of -1 it never rings. It must not
// move once it is set up.
type bell struct {
	fd  int
	buf [8]byte
	vec [1]unix.Iovec
}

func (b *bell) listen(fd int) {
	b.fd = fd
	b.vec[0] = unix.Iovec{Base: &b.buf[0], Len: uint64(len(b.buf))}
}

// drain takes what has rung, and reports whether anything had. It does not wait,
// whether or not the descriptor is non-blocking; for that it takes Linux 5.8.
func (b *bell) drain() bool {
	for b.fd >= 0 {
		n, errno := blkio.Preadv(b.fd, b.vec[:], -1, unix.RWF_NOWAIT)
		if errno != unix.EINTR {
			return n > 0
		}
	}
	return false
}
