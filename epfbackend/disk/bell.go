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
// whether or not the descriptor is non-blocking.
func (b *bell) drain() bool {
	for b.fd >= 0 {
		n, errno := blkio.Preadv(b.fd, b.vec[:], -1, unix.RWF_NOWAIT)
		if errno != unix.EINTR {
			return n > 0
		}
	}
	return false
}

// ring adds one to the eventfd fd. It can only fail where that is full, and then
// its reader will wake up anyway.
func ring(fd int) {
	for {
		if _, err := unix.Write(fd, one[:]); err != unix.EINTR {
			return
		}
	}
}

// one is the number, in the byte order of the machines we build for.
var one = [8]byte{1}
