package doorbell

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Source is where the notifications of one virtqueue arrive.
type Source interface {
	// FD is the eventfd that becomes readable when the doorbell was rung. The
	// waiter drains it. It is owned by the source and valid until Close.
	FD() int

	// Ring rings the doorbell from our side: how a worker is told that it has
	// something to do. It may be called from any goroutine until Close.
	Ring()

	Close() error
}

// Trapped is the doorbell of a notify register whose writes we see.
type Trapped struct{ fd int }

var _ Source = (*Trapped)(nil)

// NewTrapped returns a doorbell that nobody has rung.
func NewTrapped() (*Trapped, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create doorbell: %w", err)
	}
	return &Trapped{fd}, nil
}

// FD implements Source.
func (t *Trapped) FD() int { return t.fd }

// Ring implements Source.
func (t *Trapped) Ring() {
	for {
		// EAGAIN: the counter is full, so the doorbell is as rung as can be.
		if _, err := unix.Write(t.fd, one[:]); err != unix.EINTR {
			return
		}
	}
}

// one is the number, in the byte order of the machines we build for.
var one = [8]byte{1}

// Close releases the eventfd. Nobody may wait on it any more.
func (t *Trapped) Close() error { return unix.Close(t.fd) }
