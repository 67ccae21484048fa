package rc

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// UseMSIX turns MSI-X on, with an eventfd of its own for each of the first n
// vectors.
func (d *Device) UseMSIX(n int) error {
	if n > d.MSIX.Vectors {
		return fmt.Errorf("%w: it has %d vectors, not %d", ErrDevice, d.MSIX.Vectors, n)
	}
	if err := d.closeInterrupts(); err != nil {
		return err
	}
	for range n {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return errors.Join(fmt.Errorf("create an interrupt: %w", err), d.closeInterrupts())
		}
		d.irqs = append(d.irqs, fd)
	}
	if err := d.bus.Vectors(d.irqs); err != nil {
		return err
	}
	return d.setConfig16(d.msix+virtiopci.MSIXCapControl, virtiopci.MSIXEnable)
}

// UseINTx turns MSI-X off and listens to the interrupt pin.
func (d *Device) UseINTx() error {
	if err := d.closeInterrupts(); err != nil {
		return err
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("create an interrupt: %w", err)
	}
	d.intx = fd
	if d.msix != 0 {
		if err := d.setConfig16(d.msix+virtiopci.MSIXCapControl, 0); err != nil {
			return err
		}
	}
	return d.bus.INTx(fd)
}

func (d *Device) closeInterrupts() error {
	var errs []error
	if d.irqs != nil {
		errs = append(errs, d.bus.Vectors(nil))
	}
	if d.intx >= 0 {
		errs = append(errs, d.bus.INTx(-1), unix.Close(d.intx))
	}
	for _, fd := range d.irqs {
		errs = append(errs, unix.Close(fd))
	}
	d.irqs, d.intx = nil, -1
	return errors.Join(errs...)
}

// interrupt returns the eventfd to wait for: that of a vector, or the pin's.
func (d *Device) interrupt(vector uint16) int {
	if int(vector) < len(d.irqs) {
		return d.irqs[vector]
	}
	return d.intx
}

// AwaitInterrupt waits for an interrupt of a vector, or of the pin where MSI-X is
// not in use, and reports whether one came in time. It acknowledges the pin by
// reading the ISR status, and returns that.
func (d *Device) AwaitInterrupt(vector uint16, timeout time.Duration) (came bool, isr uint8, err error) {
	return d.awaitWith(new(event), vector, timeout)
}

// awaitWith is AwaitInterrupt with memory to do it in.
func (d *Device) awaitWith(e *event, vector uint16, timeout time.Duration) (came bool, isr uint8, err error) {
	fd := d.interrupt(vector)
	came, err = e.await(fd, timeout)
	if came && fd == d.intx {
		if isr, err = d.ISR(); err == nil {
			err = d.bus.EndINTx()
		}
	}
	return came, isr, err
}

// event is what it takes to wait for an eventfd without allocating.
type event struct {
	count [8]byte
	fds   [1]unix.PollFd
}

// await waits until fd is signalled, and drains it.
func (e *event) await(fd int, timeout time.Duration) (bool, error) {
	e.fds[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	end := time.Now().Add(timeout)
	for {
		left := max(time.Until(end), 0)
		n, err := unix.Poll(e.fds[:], int((left+time.Millisecond-1)/time.Millisecond))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return false, fmt.Errorf("wait for an interrupt: %w", err)
		case n == 0:
			return false, nil
		}
		switch _, err := unix.Read(fd, e.count[:]); err {
		case nil:
			return true, nil
		case unix.EAGAIN, unix.EINTR:
		default:
			return false, fmt.Errorf("read an interrupt: %w", err)
		}
	}
}
