package irq

import (
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

// Interrupts are the ways in which one client wants to be interrupted. All
// methods may be called from any goroutine.
type Interrupts struct {
	msi, msix []line // by vector
	intx      [1]line

	// The pin is a level, the eventfd an edge: the client masks the pin when it
	// has been told, and unmasks it when its guest is done.
	mu               sync.Mutex
	asserted, masked bool
	released         bool
}

// New returns interrupts of a device with so many vectors, none of them set up.
// They must be released.
func New(msi, msix int) *Interrupts {
	return &Interrupts{msi: make([]line, msi), msix: make([]line, msix)}
}

// RaiseMSIX signals an MSI-X vector. One that the client has not set up is
// dropped.
func (i *Interrupts) RaiseMSIX(vector int) error { return raise(i.msix, vector) }

// RaiseMSI signals an MSI vector, as RaiseMSIX does.
func (i *Interrupts) RaiseMSI(vector int) error { return raise(i.msi, vector) }

func raise(lines []line, vector int) error {
	if vector >= len(lines) {
		return nil
	}
	return lines[vector].signal()
}

// MSIX says whether the client has set up an MSI-X vector.
func (i *Interrupts) MSIX(vector int) bool {
	return vector < len(i.msix) && i.msix[vector].to.Load() != nil
}

// MSI says whether the client has set up an MSI vector.
func (i *Interrupts) MSI(vector int) bool {
	return vector < len(i.msi) && i.msi[vector].to.Load() != nil
}

// SetINTx drives the pin.
func (i *Interrupts) SetINTx(asserted bool) error {
	i.mu.Lock()
	rises := asserted && !i.asserted
	i.asserted = asserted
	i.mu.Unlock()
	if !rises {
		return nil
	}
	return i.tell()
}

// tell signals an asserted pin, unless it is masked; being told masks it.
func (i *Interrupts) tell() error {
	i.mu.Lock()
	now := i.asserted && !i.masked && i.intx[0].to.Load() != nil
	i.masked = i.masked || now
	i.mu.Unlock()
	if !now {
		return nil
	}
	return i.intx[0].signal()
}

func (i *Interrupts) mask(masked bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.masked = masked
}

// Set is what vfiouser.Device.SetIRQs asks for. It owns the descriptors.
func (i *Interrupts) Set(s vfiouser.IRQSet) error {
	to, err := eventfds(s.FDs)
	if err != nil {
		return err
	}
	switch s.Index {
	case vfiouser.IRQINTx:
		err = i.setINTx(s, to)
	case vfiouser.IRQMSIX:
		err = i.setVectors(i.msix, s, to)
	case vfiouser.IRQMSI:
		err = i.setVectors(i.msi, s, to)
	default:
		if s.Count > 0 {
			err = fmt.Errorf("interrupt index %d: %w", s.Index, syscall.EINVAL)
		}
	}
	if err != nil {
		for _, e := range to {
			e.release()
		}
	}
	return err
}

// eventfds takes over descriptors, all or none.
func eventfds(fds []int) ([]*sink, error) {
	to := make([]*sink, 0, len(fds))
	for n, fd := range fds {
		e, err := newSink(fd)
		if err != nil {
			for _, e := range to {
				e.release()
			}
			for _, fd := range fds[n+1:] {
				_ = unix.Close(fd)
			}
			return nil, err
		}
		to = append(to, e)
	}
	return to, nil
}

func (i *Interrupts) setVectors(all []line, s vfiouser.IRQSet, to []*sink) error {
	switch {
	case s.Flags&vfiouser.IRQActionTrigger == 0:
		return fmt.Errorf("vectors are masked by the client: %w", syscall.ENOTSUP)
	case s.Flags&vfiouser.IRQDataNone != 0 && s.Count == 0:
		return i.connect(all, nil)
	}
	lines := all[s.Start:][:s.Count]
	if s.Flags&vfiouser.IRQDataEventfd != 0 {
		return i.connect(lines, to)
	}
	return each(s, func(n int) error { return lines[n].signal() })
}

// connect puts eventfds on lines, or takes those that are there off.
func (i *Interrupts) connect(lines []line, to []*sink) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.released {
		return fmt.Errorf("interrupts are gone: %w", syscall.ESHUTDOWN)
	}
	for n := range lines {
		var e *sink
		if len(to) > 0 {
			e = to[n]
		}
		lines[n].replace(e)
	}
	return nil
}

func (i *Interrupts) setINTx(s vfiouser.IRQSet, to []*sink) error {
	eventfds, none := s.Flags&vfiouser.IRQDataEventfd != 0, s.Flags&vfiouser.IRQDataNone != 0
	switch {
	case s.Flags&vfiouser.IRQActionTrigger != 0 && (eventfds || none && s.Count == 0):
		if err := i.connect(i.intx[:], to); err != nil {
			return err
		}
		i.mask(false)
		return i.tell()
	case eventfds:
		return fmt.Errorf("no eventfd masks or unmasks the pin: %w", syscall.ENOTSUP)
	case s.Flags&vfiouser.IRQActionMask != 0:
		return each(s, func(int) error { i.mask(true); return nil })
	case s.Flags&vfiouser.IRQActionUnmask != 0:
		return each(s, func(int) error { i.mask(false); return i.tell() })
	}
	return each(s, func(int) error { return i.intx[0].signal() })
}

// each calls f for each interrupt that s is meant for, by its number from
// s.Start on.
func each(s vfiouser.IRQSet, f func(n int) error) error {
	for n := range int(s.Count) {
		if s.Flags&vfiouser.IRQDataBool != 0 && s.Bools[n] == 0 {
			continue
		}
		if err := f(n); err != nil {
			return err
		}
	}
	return nil
}

// Release closes everything, and frees those who wait in a client's eventfd.
// What is signalled from now on is dropped.
func (i *Interrupts) Release() {
	i.mu.Lock()
	i.released = true
	i.mu.Unlock()
	for _, lines := range [][]line{i.msi, i.msix} {
		for n := range lines {
			lines[n].retire()
		}
	}
	i.intx[0].retire()
}
