package doorbell

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/eventfd"
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
	fd, err := eventfd.New()
	if err != nil {
		return nil, fmt.Errorf("create doorbell: %w", err)
	}
	return &Trapped{fd}, nil
}

// FD implements Source.
func (t *Trapped) FD() int { return t.fd }

// Ring implements Source.
func (t *Trapped) Ring() { _ = eventfd.Ring(t.fd) }

// Close releases the eventfd. Nobody may wait on it any more.
func (t *Trapped) Close() error { return unix.Close(t.fd) }
