package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// console is a guest's console as a terminal device of this machine.
type console struct {
	name   string
	ours   *os.File
	theirs *os.File // held open, so that ours can be read while nobody looks
}

func newConsole() (*console, error) {
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		_ = ours.Close()
		return nil, fmt.Errorf("make a terminal: %w", err)
	}
	_ = unix.SetNonblock(int(ours.Fd()), true) // Fd made it wait
	c := &console{name: fmt.Sprintf("/dev/pts/%d", n), ours: ours}
	if c.theirs, err = os.OpenFile(c.name, os.O_RDWR|unix.O_NOCTTY, 0); err == nil {
		err = raw(c.theirs)
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("make a terminal: %w", err)
	}
	return c, nil
}

// raw leaves echo and line editing to the guest.
func raw(f *os.File) error {
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag &^= unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG | unix.IEXTEN
	return unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
}

// Write shows what the guest printed, and drops what nobody reads.
func (c *console) Write(p []byte) (int, error) {
	if raw, err := c.ours.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.Write(int(fd), p) })
	}
	return len(p), nil
}

// typeTo types what is typed here on the console of the guest that is there then.
func (c *console) typeTo(guest func() *vm.Shell) {
	for b := make([]byte, 256); ; {
		n, err := c.ours.Read(b)
		if err != nil {
			return
		}
		if g := guest(); g != nil {
			_ = g.Type(string(b[:n]))
		}
	}
}

func (c *console) close() {
	_ = c.ours.Close()
	if c.theirs != nil {
		_ = c.theirs.Close()
	}
}
