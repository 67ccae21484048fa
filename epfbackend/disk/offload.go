package disk

import (
	"sync"
	"sync/atomic"

	"github.com/vblk-ep/vblk-ep/internal/blkio"
	"github.com/vblk-ep/vblk-ep/internal/eventfd"
	"golang.org/x/sys/unix"
)

// offload runs operations with plain system calls on a few threads: all of them
// for the plain engine, those without an io_uring operation and those whose memory has
// to be copied for the other. The engine alone calls its methods.
type offload struct {
	t       *target
	max     int // threads
	threads int
	queue   chan *IO // never full: it has room for the engine's depth
	stop    atomic.Bool
	wg      sync.WaitGroup

	bell  bell // rings when finished becomes non-empty
	ready atomic.Int32
	mu    sync.Mutex
	// finished is guarded by mu.
	finished []*IO
}

func (o *offload) open(t *target, depth, threads int) error {
	fd, err := eventfd.New()
	if err != nil {
		return err
	}
	o.t, o.max = t, min(depth, threads)
	o.queue = make(chan *IO, depth)
	o.finished = make([]*IO, 0, depth)
	o.bell.listen(fd)
	return nil
}

// start runs io from its current step to its end. Threads are started when they
// are first needed.
func (o *offload) start(io *IO) {
	if o.threads < o.max {
		o.threads++
		o.wg.Add(1)
		go o.work()
	}
	o.queue <- io
}

func (o *offload) work() {
	defer o.wg.Done()
	c := newCopier(o.t)
	defer c.close()
	for io := range o.queue {
		o.run(io, c)
		o.mu.Lock()
		o.finished = append(o.finished, io)
		first := o.ready.Add(1) == 1
		o.mu.Unlock()
		if first {
			_ = eventfd.Ring(o.bell.fd)
		}
	}
}

func (o *offload) run(io *IO, c *copier) {
	for {
		var n int64
		var errno unix.Errno
		if io.step.call >= callReadCopy {
			n, errno = c.do(&io.step)
		} else {
			n, errno = o.t.do(&io.step)
		}
		if !o.t.finish(io, n, errno) {
			return
		}
		if o.stop.Load() && io.long() {
			io.fail(unix.ECANCELED)
			return
		}
	}
}

// do takes a step and waits for it.
func (t *target) do(s *step) (int64, unix.Errno) {
	fd := t.fd(s)
	switch s.call {
	case callRead:
		return blkio.Preadv(fd, s.vec, s.off, s.flags)
	case callWrite:
		return blkio.Pwritev(fd, s.vec, s.off, s.flags)
	case callSync:
		return 0, errnoOf(unix.Fdatasync(fd))
	case callFallocate:
		return 0, errnoOf(unix.Fallocate(fd, s.flags, s.off, s.n))
	case callDiscard:
		return 0, blkio.Range(fd, unix.BLKDISCARD, s.off, s.n)
	case callZeroOut:
		return 0, blkio.Range(fd, unix.BLKZEROOUT, s.off, s.n)
	case callSecureErase:
		return 0, blkio.Range(fd, unix.BLKSECDISCARD, s.off, s.n)
	}
	return 0, unix.EOPNOTSUPP
}

// errnoOf takes the number out of what a wrapper of a system call returns.
func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(unix.Errno); ok {
		return errno
	}
	return unix.EIO
}

// take appends what is finished to dst.
func (o *offload) take(dst []*IO) []*IO {
	if o.ready.Load() == 0 {
		return dst
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	dst = append(dst, o.finished...)
	o.finished = o.finished[:0]
	o.ready.Store(0)
	return dst
}

// close ends the threads after all that was started.
func (o *offload) close() error {
	if o.queue == nil {
		return nil
	}
	o.stop.Store(true)
	close(o.queue)
	o.wg.Wait()
	o.queue = nil
	return unix.Close(o.bell.fd)
}
