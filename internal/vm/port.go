package vm

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// port is our end of one of the machine's character devices. QEMU inherits the
// other end, so no path in the file system is involved.
type port struct {
	net.Conn
	theirs *os.File
}

func newPort(name string) (*port, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("vm: make the %s port: %w", name, err)
	}
	ours := os.NewFile(uintptr(fds[0]), name)
	theirs := os.NewFile(uintptr(fds[1]), name)
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		_ = theirs.Close()
		return nil, fmt.Errorf("vm: make the %s port: %w", name, err)
	}
	return &port{Conn: conn, theirs: theirs}, nil
}

func (p *port) close() {
	_ = p.Close()
	_ = p.theirs.Close()
}

// maxCapture bounds what is kept of one port's output, in bytes.
const maxCapture = 16 << 20

// capture keeps what a port said, and lets others wait for it.
type capture struct {
	mu      sync.Mutex
	text    []byte
	changed chan struct{} // closed and replaced when there is more, or the end
	ended   bool
}

func newCapture() *capture { return &capture{changed: make(chan struct{})} }

// Write keeps the text up to the bound and drops what is beyond.
func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p[:min(len(p), maxCapture-len(c.text))]...)
	c.signal()
	return len(p), nil
}

// end says that nothing more will come.
func (c *capture) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.signal()
}

func (c *capture) signal() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// String returns what was said so far.
func (c *capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// waitFor returns nil once the text was said.
func (c *capture) waitFor(ctx context.Context, text string) error {
	for {
		c.mu.Lock()
		found, ended, changed := bytes.Contains(c.text, []byte(text)), c.ended, c.changed
		c.mu.Unlock()
		switch {
		case found:
			return nil
		case ended:
			return fmt.Errorf("vm: the guest ended without %q", text)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("vm: wait for %q: %w", text, context.Cause(ctx))
		}
	}
}
