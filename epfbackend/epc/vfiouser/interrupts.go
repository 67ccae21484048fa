package vfiouser

import (
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

// interrupts are the ways in which the client wants to be interrupted.
type interrupts struct {
	msix []line // by vector
	intx [1]line

	// The pin is a level, the eventfd an edge: the client masks the pin when it
	// has been told, and unmasks it when its guest is done.
	mu               sync.Mutex
	asserted, masked bool
	released         bool
}

func (i *interrupts) init(vectors int) { i.msix = make([]line, vectors) }

// raise signals an MSI-X vector. One that the client has not set up is dropped.
func (i *interrupts) raise(vector int) error {
	if vector >= len(i.msix) {
		return nil
	}
	return i.msix[vector].signal()
}

// setLevel drives the pin.
func (i *interrupts) setLevel(asserted bool) error {
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
func (i *interrupts) tell() error {
	i.mu.Lock()
	now := i.asserted && !i.masked && i.intx[0].to.Load() != nil
	i.masked = i.masked || now
	i.mu.Unlock()
	if !now {
		return nil
	}
	return i.intx[0].signal()
}

func (i *interrupts) mask(masked bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.masked = masked
}

// set implements vfiouser.Device.SetIRQs. It owns the descriptors.
func (i *interrupts) set(s vfiouser.IRQSet) error {
	to, err := eventfds(s.FDs)
	if err != nil {
		return err
	}
	switch s.Index {
	case vfiouser.IRQINTx:
		err = i.setINTx(s, to)
	case vfiouser.IRQMSIX:
		err = i.setMSIX(s, to)
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
func eventfds(fds []int) ([]*eventfd, error) {
	to := make([]*eventfd, 0, len(fds))
	for n, fd := range fds {
		e, err := newEventfd(fd)
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

func (i *interrupts) setMSIX(s vfiouser.IRQSet, to []*eventfd) error {
	switch {
	case s.Flags&vfiouser.IRQActionTrigger == 0:
		return fmt.Errorf("MSI-X vectors are masked by the client: %w", syscall.ENOTSUP)
	case s.Flags&vfiouser.IRQDataNone != 0 && s.Count == 0:
		return i.connect(i.msix, nil)
	}
	lines := i.msix[s.Start:][:s.Count]
	if s.Flags&vfiouser.IRQDataEventfd != 0 {
		return i.connect(lines, to)
	}
	return each(s, func(n int) error { return lines[n].signal() })
}

// connect puts eventfds on lines, or takes those that are there off.
func (i *interrupts) connect(lines []line, to []*eventfd) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.released {
		return fmt.Errorf("interrupts are gone: %w", syscall.ESHUTDOWN)
	}
	for n := range lines {
		var e *eventfd
		if len(to) > 0 {
			e = to[n]
		}
		lines[n].replace(e)
	}
	return nil
}

func (i *interrupts) setINTx(s vfiouser.IRQSet, to []*eventfd) error {
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

// release closes everything, and frees those who wait in a client's eventfd.
// What is signalled from now on is dropped.
func (i *interrupts) release() {
	i.mu.Lock()
	i.released = true
	i.mu.Unlock()
	for n := range i.msix {
		i.msix[n].retire()
	}
	i.intx[0].retire()
}
