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

// What is posted is held back until the next transfer, and made in one call with it.
const (
	heldMost  = 32   // writes
	heldBytes = 1024 // in them
)

// patient is a worker's view of host memory that may be unreachable for a while.
type patient struct {
	*epc.View
	w    *worker
	held []epc.Copy // room for one more than heldMost
	room []byte     // what they write
}

func newPatient(v *epc.View, w *worker) *patient {
	return &patient{View: v, w: w, held: make([]epc.Copy, 0, heldMost+1), room: make([]byte, 0, heldBytes)}
}

var (
	_ vring.Memory     = (*patient)(nil)
	_ vring.Poster     = (*patient)(nil)
	_ vring.Prefetcher = (*patient)(nil)
)

// ReadAt implements vring.Memory.
func (p *patient) ReadAt(b []byte, addr uint64) error {
	return p.do(epc.Copy{Dir: epc.FromHost, Addr: addr, Local: b})
}

// WriteAt implements vring.Memory.
func (p *patient) WriteAt(b []byte, addr uint64) error {
	return p.do(epc.Copy{Dir: epc.ToHost, Addr: addr, Local: b})
}

// Post implements vring.Poster.
func (p *patient) Post(b []byte, addr uint64) error {
	if !p.Joins(epc.Copy{Dir: epc.ToHost, Addr: addr, Local: b}) || len(b) > cap(p.room) {
		return p.WriteAt(b, addr)
	}
	if len(p.held) == heldMost || len(b) > cap(p.room)-len(p.room) {
		if err := p.flush(); err != nil {
			return err
		}
	}
	at := len(p.room)
	p.room = append(p.room, b...)
	p.held = append(p.held, epc.Copy{Dir: epc.ToHost, Addr: addr, Local: p.room[at:]})
	return nil
}

// reaches says whether it takes a transfer to write to an address, which can be one of
// several.
func (p *patient) reaches(addr uint64) bool { return p.Joins(epc.Copy{Dir: epc.ToHost, Addr: addr}) }

// flush makes what is held back.
func (p *patient) flush() error {
	if len(p.held) == 0 {
		return nil
	}
	return p.patiently(p.held)
}

// do makes a transfer, after what is held back.
func (p *patient) do(c epc.Copy) error {
	if len(p.held) > 0 && p.Joins(c) {
		return p.patiently(append(p.held, c))
	}
	if err := p.flush(); err != nil {
		return err
	}
	for n := 1; ; n++ {
		var err error
		if c.Dir == epc.FromHost {
			err = p.View.ReadAt(c.Local, c.Addr)
		} else {
			err = p.View.WriteAt(c.Local, c.Addr)
		}
		if err == nil || !p.w.retries(err, n) {
			return err
		}
	}
}

// patiently makes what is held back, which a list begins with. All of it may be made
// several times.
func (p *patient) patiently(list []epc.Copy) error {
	for n := 1; ; n++ {
		err := p.Copy(list)
		if err == nil {
			p.held, p.room = p.held[:0], p.room[:0]
		}
		if err == nil || !p.w.retries(err, n) {
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
	for {
		time.Sleep(awayNap)
		switch {
		case w.gate.wanted() == stopped || !w.live():
			return false
		case settled(w.ctl): // otherwise it may be another host that can be reached
			return true
		}
	}
}
