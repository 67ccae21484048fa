// Package eventfd makes eventfds and rings them. It stands on the ground and knows
// nothing of who waits, and never waits itself for one that does not block.
package eventfd

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// one is the number, in the byte order of the machines we build for.
var one = [8]byte{1}

// New returns an eventfd that nobody has rung, and that does not block. It is the
// caller's.
func New() (fd int, err error) {
	if fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return -1, fmt.Errorf("create an eventfd: %w", err)
	}
	return fd, nil
}

// Ring adds one to an eventfd. One that is full is as rung as can be, so that is no
// error.
func Ring(fd int) error {
	for {
		switch _, err := unix.Write(fd, one[:]); err {
		case nil, unix.EAGAIN:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("ring an eventfd: %w", err)
		}
	}
}
