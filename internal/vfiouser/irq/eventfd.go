package irq

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/eventfd"
)

// line is one interrupt's way to the client: an eventfd, or none. Any goroutine
// may signal it, also while it is replaced.
type line struct{ to atomic.Pointer[sink] }

// sink is an eventfd of the client's. It is closed when nobody uses it any
// more, so that its number never means another file to one who does.
type sink struct {
	fd    int
	users atomic.Int32 // the line it belongs to, and those who signal it now
}

// newSink takes over a client's descriptor. What is not an eventfd is
// refused: to write to it might do anything.
func newSink(fd int) (*sink, error) {
	kind, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		kind = "what cannot be looked at"
	}
	if kind != "anon_inode:[eventfd]" {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("interrupt by %s: %w", kind, syscall.EINVAL)
	}
	e := &sink{fd: fd}
	e.unblock()
	e.users.Store(1)
	return e, nil
}

// unblock makes sure that a write to a full eventfd fails rather than waits. The
// client shares the flag and can clear it: see retire.
func (e *sink) unblock() { _ = unix.SetNonblock(e.fd, true) }

// acquire adds a user, unless the last one is gone.
func (e *sink) acquire() bool {
	for {
		n := e.users.Load()
		if n == 0 {
			return false
		}
		if e.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (e *sink) release() {
	if e.users.Add(-1) == 0 {
		_ = unix.Close(e.fd)
	}
}

// signal signals the line. Without an eventfd nothing happens.
func (l *line) signal() error {
	for {
		e := l.to.Load()
		if e == nil {
			return nil
		}
		if !e.acquire() {
			continue // it has just been replaced
		}
		err := eventfd.Ring(e.fd)
		e.release()
		return err
	}
}

// replace puts another eventfd on the line, nil for none.
func (l *line) replace(e *sink) {
	if old := l.to.Swap(e); old != nil {
		old.release()
	}
}

// retire takes the eventfd off the line for good and waits until nobody uses it.
// A client can have filled it and made writers wait in it; we make room for
// them, as nobody else may be left to do so.
func (l *line) retire() {
	e := l.to.Swap(nil)
	if e == nil {
		return
	}
	var room [8]byte
	for e.users.Load() > 1 {
		e.unblock()
		_, _ = unix.Read(e.fd, room[:])
		time.Sleep(time.Millisecond)
	}
	e.release()
}
