package loopback

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/vblk-ep/vblk-ep/internal/eventfd"
)

// pins carries interrupts from the function to the host's eventfds.
type pins struct {
	faults *Faults
	msix   atomic.Bool

	mu     sync.Mutex
	fds    []int // by vector
	pin    int   // eventfd of INTx, -1 for none
	masked bool  // INTx is disabled
	level  bool  // of the pin
	closed bool
	late   sync.WaitGroup // interrupts under way
}

func (p *pins) init(faults *Faults) { p.faults, p.pin = faults, -1 }

// close drops what is under way, and everything after.
func (p *pins) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.late.Wait()
}

// configure says whether MSI-X is on, and whether INTx is disabled.
func (p *pins) configure(msix, masked bool) {
	p.msix.Store(msix)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.masked = masked || msix
}

func (p *pins) msixEnabled() bool { return p.msix.Load() }

func (p *pins) vectors(fds []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fds = fds
}

func (p *pins) intx(fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pin = fd
	p.signalPin() // it is level-triggered
}

// EndINTx implements rc.Bus.
func (s *Slot) EndINTx() error {
	s.pins.mu.Lock()
	defer s.pins.mu.Unlock()
	s.pins.signalPin()
	return nil
}

// raise signals a vector, now or later.
func (p *pins) raise(vector uint16) error {
	delay := p.faults.interruptDelay()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return ErrUnplugged
	case delay == 0:
		p.deliver(vector)
		return nil
	}
	p.late.Add(1)
	time.AfterFunc(delay, func() {
		defer p.late.Done()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.deliver(vector)
	})
	return nil
}

// deliver signals a vector. The caller holds p.mu.
func (p *pins) deliver(vector uint16) {
	if int(vector) < len(p.fds) && !p.closed {
		signal(p.fds[vector])
	}
}

// drive sets the level of the pin. The host hears of it when it rises.
func (p *pins) drive(asserted bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrUnplugged
	}
	rises := asserted && !p.level
	p.level = asserted
	if rises {
		p.signalPin()
	}
	return nil
}

func (p *pins) signalPin() {
	if p.level && !p.masked && !p.closed {
		signal(p.pin)
	}
}

func signal(fd int) {
	if fd >= 0 {
		_ = eventfd.Ring(fd)
	}
}
