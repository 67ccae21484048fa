package disk

import (
	"errors"
	"fmt"
	"time"

	"github.com/vblk-ep/vblk-ep/internal/uring"
	"golang.org/x/sys/unix"
)

const (
	uringThreads  = 2   // for what has no io_uring operation
	uringBuffers  = 64  // of at most 1 GiB that can be pinned
	uringSpare    = 8   // entries beside those of the operations: watches, cancels
	uringReap     = 64  // completions taken at once
	uringPatience = 100 // milliseconds to wait for a kernel that is out of memory
	uringEarly    = 8   // operations that do not wait for those after them
)

// What completes under these names is no operation; those have their slot.
const (
	tagDoorbell = ^uint64(0) - iota
	tagOffload
	tagOther
	tagCancel
)

// uringEngine has one system call of each operation in flight, and watches the
// doorbell and the off-load in the same ring: that is the one place where its
// worker sleeps.
type uringEngine struct {
	t        *target
	ring     *uring.Ring
	off      offload
	doorbell bell
	other    bell // see Listen
	woken    bool // by it
	watching int  // watches that will still complete
	closing  bool

	slots []*IO    // by slot
	free  []uint32 // slots
	done  []*IO    // since the last Wait
	out   []*IO    // what Wait returned
	cqes  [uringReap]uring.CQE
}

func newUringEngine(t *target, depth, doorbell int) (_ *uringEngine, err error) {
	e := &uringEngine{t: t, done: make([]*IO, 0, depth), out: make([]*IO, 0, depth), slots: make([]*IO, depth)}
	for i := depth; i > 0; i-- {
		e.free = append(e.free, uint32(i-1))
	}
	entries := uint32(depth + uringSpare)
	if e.ring, err = uring.New(entries, 2*entries); err != nil {
		return nil, err
	}
	if err = e.attach(depth, doorbell); err != nil {
		e.ring.Close()
		e.off.close()
		return nil, err
	}
	return e, nil
}

func (e *uringEngine) attach(depth, doorbell int) error {
	if !e.ring.Supports(uring.OpRead, uring.OpReadv, uring.OpWrite, uring.OpWritev,
		uring.OpFsync, uring.OpFallocate, uring.OpPollAdd, uring.OpAsyncCancel) {
		return uring.ErrOld
	}
	if err := e.off.open(e.t, depth, uringThreads); err != nil {
		return err
	}
	if err := e.registerFiles(); err != nil {
		return err
	}
	_ = e.ring.RegisterBuffers(uringBuffers) // what it cannot, Pin will say
	e.doorbell.listen(doorbell)
	e.watch(tagDoorbell)
	e.watch(tagOffload)
	return nil
}

// The registered files.
var (
	directFile   = uring.Slot(0)
	bufferedFile = uring.Slot(1)
)

// registerFiles saves a reference count per operation.
func (e *uringEngine) registerFiles() error {
	fd := e.t.direct
	if fd < 0 {
		fd = e.t.buffered
	}
	return e.ring.RegisterFiles(fd, e.t.buffered)
}

func (e *uringEngine) Name() string { return "io_uring" }

func (e *uringEngine) Start(io *IO) {
	if len(e.free) == 0 {
		io.fail(unix.EBUSY)
		e.done = append(e.done, io)
		return
	}
	if !e.t.begin(io) {
		e.done = append(e.done, io)
		return
	}
	last := len(e.free) - 1
	io.slot = e.free[last]
	e.free = e.free[:last]
	e.slots[io.slot] = io
	e.issue(io)
	// The disk begins when it is told, and need not be idle while a long turn is prepared.
	if e.ring.Prepared() >= uringEarly {
		_ = e.ring.Submit() // what it cannot, Wait tries again, and says
	}
}

// issue prepares the step of io.
func (e *uringEngine) issue(io *IO) {
	s := &io.step
	if s.call >= callDiscard {
		e.off.start(io)
		return
	}
	sqe := e.next()
	if sqe == nil {
		io.fail(unix.EBUSY)
		e.complete(io)
		return
	}
	tag := uint64(io.slot)
	switch s.call {
	case callRead:
		sqe.Read(s.file(), s.vec, s.off, s.flags, tag)
		e.inBuffer(sqe, s)
	case callWrite:
		sqe.Write(s.file(), s.vec, s.off, s.flags, tag)
		e.inBuffer(sqe, s)
	case callSync:
		sqe.Datasync(bufferedFile, tag)
	case callFallocate:
		sqe.Fallocate(bufferedFile, s.flags, s.off, s.n, tag)
	}
}

// inBuffer makes use of memory that is pinned. The page cache copies from and to the
// mapping itself.
func (e *uringEngine) inBuffer(sqe *uring.SQE, s *step) {
	if !s.direct {
		return
	}
	if i, ok := e.ring.Buffer(s.vec); ok {
		sqe.InBuffer(i)
	}
}

// Pin implements Engine.
func (e *uringEngine) Pin(memory ...[]byte) error {
	if e.t.direct < 0 {
		return nil
	}
	return e.ring.SetBuffers(memory...)
}

func (s *step) file() uring.File {
	if s.direct {
		return directFile
	}
	return bufferedFile
}

// next returns a free entry. The queue has room for everything, except at the
// largest depth that the kernel takes.
func (e *uringEngine) next() *uring.SQE {
	if s := e.ring.Next(); s != nil {
		return s
	}
	if e.ring.Submit() != nil {
		return nil
	}
	return e.ring.Next()
}

func (e *uringEngine) watch(tag uint64) {
	fd := e.doorbell.fd
	switch tag {
	case tagOffload:
		fd = e.off.bell.fd
	case tagOther:
		fd = e.other.fd
	}
	if sqe := e.next(); sqe != nil {
		sqe.Poll(uring.FD(fd), unix.POLLIN, true, tag)
		e.watching++
	}
}

func (e *uringEngine) complete(io *IO) {
	e.slots[io.slot] = nil
	e.free = append(e.free, io.slot)
	e.done = append(e.done, io)
}

// Listen implements Engine.
func (e *uringEngine) Listen(bell int) {
	e.other.listen(bell)
	e.watch(tagOther)
}

func (e *uringEngine) Wait(block bool) ([]*IO, bool, error) {
	rung := false
	e.woken = false
	for {
		if err := e.enter(block && len(e.done) == 0); err != nil {
			return nil, false, err
		}
		bell, err := e.reap()
		if err != nil {
			return nil, false, err
		}
		rung = rung || bell
		if rung || e.woken || len(e.done) > 0 || !block {
			break
		}
	}
	// What has to go on goes on while the worker looks at what is done.
	if e.ring.Prepared() > 0 {
		if err := e.enter(false); err != nil {
			return nil, false, err
		}
	}
	e.done, e.out = e.out[:0], e.done
	return e.out, rung, nil
}

func (e *uringEngine) Ready() bool {
	return len(e.done) > 0 || e.ring.Ready() > 0 || e.ring.Due()
}

// enter submits what is prepared, and if asked to sleeps for a completion. A
// kernel that is out of memory is given a little time.
func (e *uringEngine) enter(sleep bool) error {
	for tries := 0; ; tries++ {
		var err error
		if sleep {
			err = e.ring.SubmitAndWait(1)
		} else {
			err = e.ring.Submit()
		}
		switch {
		case err == nil || e.ring.Ready() > 0:
			return nil
		case err != unix.EAGAIN && err != unix.EBUSY || tries == uringPatience:
			return fmt.Errorf("submit to io_uring: %w", err)
		}
		time.Sleep(time.Millisecond)
	}
}

// reap takes all completions. It reports whether the doorbell has rung.
func (e *uringEngine) reap() (rung bool, err error) {
	for {
		n := e.ring.Reap(e.cqes[:])
		for i := range e.cqes[:n] {
			c := &e.cqes[i]
			if c.UserData < uint64(len(e.slots)) {
				e.advance(e.slots[c.UserData], c.Res)
				continue
			}
			bell, watchErr := e.watched(c)
			rung = rung || bell
			err = errors.Join(err, watchErr)
		}
		if n < len(e.cqes) {
			return rung, err
		}
	}
}

func (e *uringEngine) advance(io *IO, res int32) {
	n, errno := int64(res), unix.Errno(0)
	if res < 0 {
		n, errno = 0, unix.Errno(-res)
	}
	switch {
	case !e.t.finish(io, n, errno):
		e.complete(io)
	case e.closing && io.long():
		io.fail(unix.ECANCELED)
		e.complete(io)
	default:
		e.issue(io)
	}
}

// watched handles the completion of a watch. It reports whether the doorbell has
// rung.
func (e *uringEngine) watched(c *uring.CQE) (rung bool, err error) {
	if c.UserData == tagCancel {
		return false, nil
	}
	if !c.More() {
		e.watching--
	}
	if c.Res < 0 {
		if e.closing {
			return false, nil
		}
		return false, fmt.Errorf("watch the doorbell: %w", unix.Errno(-c.Res))
	}
	switch c.UserData {
	case tagDoorbell:
		rung = e.doorbell.drain()
	case tagOther:
		e.woken = e.other.drain() || e.woken
	default:
		e.off.bell.drain()
		before := len(e.done)
		e.done = e.off.take(e.done)
		for _, io := range e.done[before:] {
			e.slots[io.slot] = nil
			e.free = append(e.free, io.slot)
		}
	}
	if !c.More() && (!e.closing || len(e.free) < len(e.slots)) { // operations need their bell to the last
		e.watch(c.UserData)
	}
	return rung, nil
}

func (e *uringEngine) Close() error {
	if e.ring == nil {
		return nil
	}
	e.closing = true
	e.off.stop.Store(true)
	err := e.drain()
	err = errors.Join(err, e.ring.Close(), e.off.close())
	e.ring = nil
	return err
}

// drain waits for the operations, then takes the watches back.
func (e *uringEngine) drain() error {
	for len(e.free) < len(e.slots) {
		if _, _, err := e.Wait(true); err != nil {
			return err
		}
	}
	for _, tag := range []uint64{tagDoorbell, tagOffload, tagOther} { // not all are watched
		if sqe := e.next(); sqe != nil {
			sqe.Cancel(tag, tagCancel)
		}
	}
	for e.watching > 0 {
		if err := e.enter(true); err != nil {
			return err
		}
		if _, err := e.reap(); err != nil {
			return err
		}
	}
	return nil
}
