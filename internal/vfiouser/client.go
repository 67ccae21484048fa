package vfiouser

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is the memory that a client answers DMA messages from. The calls come
// one at a time.
type Host interface {
	ReadDMA(p []byte, addr uint64) error
	WriteDMA(p []byte, addr uint64) error
}

// ClientOptions of a Client. The zero value has sane defaults.
type ClientOptions struct {
	// Host answers the server's DMA messages; nil refuses all.
	Host Host
	// Layout of DMA messages; 0 is DMALayoutSpec.
	Layout DMALayout
	// Timeout bounds the wait for each reply; 0 is 5 s.
	Timeout time.Duration
	// NoJSON leaves the capabilities out of the version message.
	NoJSON bool
}

// Client is the client's end of a connection. Its methods may be called from
// any goroutine; commands are executed in the order in which they are sent.
type Client struct {
	*transport
	opts ClientOptions
	peer Capabilities
	wg   sync.WaitGroup

	mu      sync.Mutex
	nextID  uint16
	pending map[uint16]*call

	requests chan request // the server's commands
}

// call is a command that waits for its reply.
type call struct {
	room    int // the largest payload that is acceptable
	payload []byte
	fds     []int
	err     error
	done    chan struct{}
}

type request struct {
	Header
	payload []byte
}

// Dial connects to the server at a socket path and negotiates the version.
func Dial(ctx context.Context, path string, opts ClientOptions) (*Client, error) {
	var d net.Dialer
	sock, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return NewClient(sock.(*net.UnixConn), opts)
}

// NewClient negotiates the version over a connected socket, which it owns.
func NewClient(sock *net.UnixConn, opts ClientOptions) (*Client, error) {
	if opts.Timeout == 0 {
		opts.Timeout = 5 * time.Second
	}
	if opts.Layout == dmaLayoutUnknown {
		opts.Layout = DMALayoutSpec
	}
	c := &Client{
		transport: newTransport(sock),
		opts:      opts,
		pending:   make(map[uint16]*call),
		requests:  make(chan request, dmaInFlight),
	}
	c.wg.Add(2)
	go func() { defer c.wg.Done(); c.receive() }()
	go func() { defer c.wg.Done(); c.serveHost() }()

	limit := 1 << 16
	if opts.NoJSON {
		limit = versionSize
	}
	version := putVersion(limit)
	reply, _, err := c.do(CmdVersion, len(version), nil, len(version), func(b []byte) { copy(b, version) })
	if err == nil {
		c.peer, err = parseVersion(reply)
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("version handshake: %w", err)
	}
	return c, nil
}

// Peer returns what the server said of itself.
func (c *Client) Peer() Capabilities { return c.peer }

// PeerPID returns the process that listened at the socket when we connected; 0 if
// that is not to be seen from here.
func (c *Client) PeerPID() (pid int, err error) {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, fmt.Errorf("who the server is: %w", err)
	}
	return int(cred.Pid), nil
}

// Close ends the connection.
func (c *Client) Close() error {
	c.fail(ErrClosed)
	c.wg.Wait()
	return c.close()
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.dead }

// do sends a command and waits for its reply, whose payload may have room bytes
// at most. The caller owns the descriptors it returns.
func (c *Client) do(cmd Command, n int, fds []int, room int, fill func([]byte)) ([]byte, []int, error) {
	w := &call{room: room, done: make(chan struct{})}
	id := c.begin(w)
	if err := c.send(Header{ID: id, Command: cmd, Flags: FlagCommand}, n, fds, fill); err != nil {
		c.abandon(id)
		return nil, nil, fmt.Errorf("command %d: %w", cmd, err)
	}
	timer := time.NewTimer(c.opts.Timeout)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
		return nil, nil, c.giveUp(id, w, ErrTimeout)
	case <-c.dead:
		return nil, nil, c.giveUp(id, w, fmt.Errorf("%w: %w", ErrClosed, c.failed))
	}
	if w.err != nil {
		return nil, nil, fmt.Errorf("command %d: %w", cmd, w.err)
	}
	return w.payload, w.fds, nil
}

func (c *Client) begin(w *call) uint16 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		c.nextID++
		if _, used := c.pending[c.nextID]; !used {
			c.pending[c.nextID] = w
			return c.nextID
		}
	}
}

func (c *Client) abandon(id uint16) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.pending[id]
	delete(c.pending, id)
	return w
}

// giveUp ends a wait. When the receiver has the reply in hand already, it is
// awaited, so that its descriptors find an owner: us, to close them.
func (c *Client) giveUp(id uint16, w *call, err error) error {
	if c.abandon(id) == nil {
		<-w.done
		closeFDs(w.fds)
	}
	return err
}

// receive is the receiver goroutine.
func (c *Client) receive() {
	defer close(c.requests)
	for {
		h, fds, err := c.receiveHeader()
		if err == nil {
			if h.IsReply() {
				err = c.receiveReply(h, fds)
			} else {
				closeFDs(fds)
				err = c.receiveRequest(h)
			}
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *Client) receiveReply(h Header, fds []int) error {
	w := c.abandon(h.ID)
	if w == nil {
		closeFDs(fds)
		return c.skip(int(h.Size) - HeaderSize)
	}
	defer close(w.done)
	w.fds = fds
	n := int(h.Size) - HeaderSize
	switch {
	case h.Flags&FlagError != 0:
		w.err = syscall.Errno(h.Errno)
	case n > w.room:
		w.err = fmt.Errorf("%w: reply of %d bytes into %d", ErrMalformed, n, w.room)
	}
	if w.err != nil {
		closeFDs(fds)
		w.fds = nil
		return c.skip(n)
	}
	w.payload = make([]byte, n)
	err := c.receivePayload(w.payload)
	if err != nil {
		closeFDs(fds)
		w.fds, w.err = nil, err
	}
	return err
}

func (c *Client) receiveRequest(h Header) error {
	r := request{h, make([]byte, h.Size-HeaderSize)}
	if err := c.receivePayload(r.payload); err != nil {
		return err
	}
	select {
	case c.requests <- r:
		return nil
	case <-c.dead:
		return ErrClosed
	}
}

// serveHost is the goroutine that executes the server's commands. It is apart
// from the receiver, so that a Host may send commands.
func (c *Client) serveHost() {
	for r := range c.requests {
		reply := Header{ID: r.ID, Command: r.Command, Flags: FlagReply}
		n, fill, err := c.dma(r)
		if err != nil {
			reply.Flags |= FlagError
			reply.Errno = uint32(errnoOf(err))
			n, fill = 0, nil
		}
		if !r.NoReply() {
			_ = c.send(reply, n, nil, fill)
		}
	}
}

func (c *Client) dma(r request) (n int, fill func([]byte), err error) {
	if r.Command != CmdDMARead && r.Command != CmdDMAWrite {
		return 0, nil, fmt.Errorf("command %d from the server: %w", r.Command, syscall.ENOSYS)
	}
	if c.opts.Host == nil {
		return 0, nil, fmt.Errorf("no memory for DMA: %w", syscall.ENODEV)
	}
	layout := c.opts.Layout
	addr, count, err := layout.parse(r.payload)
	if err != nil {
		return 0, nil, err
	}
	if r.Command == CmdDMAWrite {
		data, err := layout.data(r.payload, int(count))
		if err != nil {
			return 0, nil, err
		}
		return 0, nil, c.opts.Host.WriteDMA(data, addr)
	}
	data := make([]byte, count)
	if err := c.opts.Host.ReadDMA(data, addr); err != nil {
		return 0, nil, err
	}
	return dmaAccessSize + len(data), func(b []byte) {
		clear(b[len(b)-4:])
		layout.put(b, addr, count)
		copy(b[layout.dataOffset():], data)
	}, nil
}

// errUnexpectedReply is for replies that fit no question.
var errUnexpectedReply = errors.New("unexpected reply")
