package disk

import (
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/blkio"
	"github.com/vblk-ep/vblk-ep/internal/shm"
)

// copySize bounds what is copied for one system call, in bytes: a multiple of every
// alignment.
const copySize = 128 << 10

// copier does transfers whose memory is not aligned for direct access, through a
// buffer that is. Each thread of an offload has its own.
type copier struct {
	t      *target
	buffer []byte // allocated when first needed, outside the heap so that it is aligned
	vec    [1]unix.Iovec

	step            *step  // that is being done
	part            []byte // of the buffer, that is being filled or emptied
	gather, scatter func() error
}

func newCopier(t *target) *copier {
	c := &copier{t: t}
	c.gather = func() error { blkio.Gather(c.part, c.step.vec, 0); return nil }
	c.scatter = func() error { blkio.Scatter(c.step.vec, 0, c.part); return nil }
	return c
}

// do takes a step and waits for it, as target.do.
func (c *copier) do(s *step) (int64, unix.Errno) {
	if c.buffer == nil {
		b, err := unix.Mmap(-1, 0, copySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return 0, errnoOf(err)
		}
		c.buffer = b
	}
	c.step, c.part = s, c.buffer[:s.n]
	c.vec[0] = unix.Iovec{Base: &c.buffer[0], Len: uint64(s.n)}
	if s.call == callWriteCopy {
		if shm.Guard(c.gather) != nil {
			return 0, unix.EFAULT // the memory is gone
		}
		return blkio.Pwritev(c.t.fd(s), c.vec[:], s.off, s.flags)
	}
	n, errno := blkio.Preadv(c.t.fd(s), c.vec[:], s.off, s.flags)
	if c.part = c.buffer[:n]; shm.Guard(c.scatter) != nil {
		return 0, unix.EFAULT
	}
	return n, errno
}

func (c *copier) close() {
	if c.buffer != nil {
		_ = unix.Munmap(c.buffer)
	}
}
