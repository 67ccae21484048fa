package vfiouser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

// interrupts are the eventfds by which the client wants to be interrupted. A
// descriptor is only used while the lock is held for reading, and only replaced
// while it is held for writing, so that its number never means another file.
type interrupts struct {
	mu   sync.RWMutex
	msix []int // by vector, -1 for none
	intx int   // -1 for none

	// The pin is a level, the eventfd an edge: the client masks the pin when it
	// has been told, and unmasks it when its guest is done.
	asserted, masked bool
}

func (i *interrupts) init(vectors int) {
	i.intx = -1
	i.msix = make([]int, vectors)
	for v := range i.msix {
		i.msix[v] = -1
	}
}

// raise signals an MSI-X vector. One that the client has not set up is dropped.
func (i *interrupts) raise(vector int) error {
	i.mu.RLock()
	defer i.mu.RUnlock()
	if vector >= len(i.msix) {
		return nil
	}
	return signal(i.msix[vector])
}

// setLevel drives the pin.
func (i *interrupts) setLevel(asserted bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	was := i.asserted
	i.asserted = asserted
	if asserted && !was {
		return i.tell()
	}
	return nil
}

// tell signals an asserted pin, unless it is masked; being told masks it.
func (i *interrupts) tell() error {
	if !i.asserted || i.masked || i.intx < 0 {
		return nil
	}
	i.masked = true
	return signal(i.intx)
}

func signal(fd int) error {
	if fd < 0 {
		return nil
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	for {
		_, err := unix.Write(fd, one[:])
		switch {
		case err == nil || errors.Is(err, unix.EAGAIN): // EAGAIN: signalled as often as can be
			return nil
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("signal interrupt: %w", err)
		}
	}
}

// set implements vfiouser.Device.SetIRQs. It owns the descriptors.
func (i *interrupts) set(s vfiouser.IRQSet) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch s.Index {
	case vfiouser.IRQINTx:
		return i.setINTx(s)
	case vfiouser.IRQMSIX:
		return i.setMSIX(s)
	}
	closeAll(s.FDs)
	return fmt.Errorf("interrupt index %d: %w", s.Index, syscall.EINVAL)
}

func (i *interrupts) setMSIX(s vfiouser.IRQSet) error {
	if s.Flags&vfiouser.IRQActionTrigger == 0 {
		closeAll(s.FDs)
		return fmt.Errorf("MSI-X vectors are masked by the client: %w", syscall.ENOTSUP)
	}
	if s.Flags&vfiouser.IRQDataNone != 0 && s.Count == 0 {
		i.dropMSIX(0, len(i.msix))
		return nil
	}
	first, end := int(s.Start), int(s.Start+s.Count)
	if s.Flags&vfiouser.IRQDataEventfd == 0 {
		return triggered(s, func(n int) error { return signal(i.msix[first+n]) })
	}
	i.dropMSIX(first, end)
	for n, fd := range s.FDs {
		i.msix[first+n] = nonBlocking(fd)
	}
	return nil
}

func (i *interrupts) dropMSIX(first, end int) {
	for v := first; v < end; v++ {
		closeAll([]int{i.msix[v]})
		i.msix[v] = -1
	}
}

func (i *interrupts) setINTx(s vfiouser.IRQSet) error {
	switch {
	case s.Flags&vfiouser.IRQActionTrigger != 0 && s.Flags&vfiouser.IRQDataNone != 0 && s.Count == 0:
		i.dropINTx()
		return nil
	case s.Flags&vfiouser.IRQDataEventfd != 0 && s.Flags&vfiouser.IRQActionTrigger == 0:
		closeAll(s.FDs)
		return fmt.Errorf("no eventfd masks or unmasks the pin: %w", syscall.ENOTSUP)
	case s.Flags&vfiouser.IRQDataEventfd != 0:
		i.dropINTx()
		if len(s.FDs) == 1 {
			i.intx = nonBlocking(s.FDs[0])
		}
		return i.tell()
	case s.Flags&vfiouser.IRQActionMask != 0:
		return triggered(s, func(int) error { i.masked = true; return nil })
	case s.Flags&vfiouser.IRQActionUnmask != 0:
		return triggered(s, func(int) error { i.masked = false; return i.tell() })
	}
	return triggered(s, func(int) error { return signal(i.intx) })
}

func (i *interrupts) dropINTx() {
	closeAll([]int{i.intx})
	i.intx, i.masked = -1, false
}

// triggered calls f for each interrupt that s is meant for, by its number from
// s.Start on.
func triggered(s vfiouser.IRQSet, f func(n int) error) error {
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

// nonBlocking makes sure that a client's eventfd, if it is one, never makes us
// wait.
func nonBlocking(fd int) int {
	_ = unix.SetNonblock(fd, true)
	return fd
}

func (i *interrupts) release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.dropMSIX(0, len(i.msix))
	i.dropINTx()
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
