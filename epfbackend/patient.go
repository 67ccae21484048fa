package epfbackend

import (
	"errors"
	"time"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/vring"
)

// A host that turns bus mastering off makes its memory unreachable, in the middle of
// whatever a worker does, and may turn it on again. So the worker waits where it is:
// what it knows of the ring stays right, and no request is lost. The wait ends with a
// reset, whether it is told of or found in the registers.
//
// A transfer can also fail by itself. Of a ring that would be the end, so what rings do is
// tried some times.

const (
	awayNap  = time.Millisecond // how long a worker waits before it tries again
	attempts = 4                // at a transfer that fails
)

// patient is a worker's view of host memory that may be unreachable for a while.
type patient struct {
	*epc.View
	w *worker
}

var (
	_ vring.Memory     = (*patient)(nil)
	_ vring.Prefetcher = (*patient)(nil)
)

// ReadAt implements vring.Memory.
func (p *patient) ReadAt(b []byte, addr uint64) error {
	for n := 1; ; n++ {
		if err := p.View.ReadAt(b, addr); err == nil || !p.w.retries(err, n) {
			return err
		}
	}
}

// WriteAt implements vring.Memory.
func (p *patient) WriteAt(b []byte, addr uint64) error {
	for n := 1; ; n++ {
		if err := p.View.WriteAt(b, addr); err == nil || !p.w.retries(err, n) {
			return err
		}
	}
}

// retries says whether a transfer that has failed for the n-th time is tried again.
func (w *worker) retries(err error, n int) bool {
	switch {
	case errors.Is(err, epc.ErrAway):
		return w.again(err)
	case errors.Is(err, vring.ErrUnmapped):
		return false
	}
	return n < attempts && w.live()
}

// again says, after a while, whether what has ended with an error is to be done again.
func (w *worker) again(err error) bool {
	if err == nil || !errors.Is(err, epc.ErrAway) || w.gate.wanted() == stopped {
		return false
	}
	time.Sleep(awayNap)
	return w.gate.wanted() != stopped && w.live()
}
