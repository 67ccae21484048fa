package vfiouser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	queueLength   = 256 // commands received and not yet executed
	smallPayload  = 256 // bytes; larger payloads are allocated when they come
	largePayloads = 2   // of these at the same time
)

// Options of a server's connection. The zero value has sane defaults.
type Options struct {
	// Logger is told of refused commands at debug level. Nil: nobody is.
	Logger *slog.Logger
	// HandshakeTimeout bounds the wait for the client's version; 0 is 5 s.
	HandshakeTimeout time.Duration
	// DMATimeout bounds the wait for the client's answer to one DMA message; 0
	// is 1 s.
	DMATimeout time.Duration
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = 5 * time.Second
	}
	if o.DMATimeout == 0 {
		o.DMATimeout = time.Second
	}
}

// Conn is the server's end of a connection to one client.
//
// One goroutine receives. It hands replies to those who wait for them and puts
// commands into a bounded queue, which Serve executes. So a command may wait for
// a queue worker that waits for the client's answer to a DMA message.
type Conn struct {
	*transport
	opts Options
	peer Capabilities

	layout *Layout
	device Device

	queue  chan *message // closed when the receiver has ended
	free   chan *message
	large  chan struct{}
	wg     sync.WaitGroup
	served bool

	dma       dmaTable
	dmaBuf    []byte // the receiver's
	dmaLayout atomic.Int32
	probeMu   sync.Mutex
}

// message is a received command.
type message struct {
	Header
	payload  []byte
	fds      []int // closed after execution unless taken
	isLarge  bool
	smallBuf [smallPayload]byte
}

// takeFDs passes the ownership of the message's descriptors to the caller.
func (m *message) takeFDs() []int {
	fds := m.fds
	m.fds = nil
	return fds
}

// Accept negotiates the protocol version with a client that has just connected.
// It owns sock: when it fails, sock is closed. The caller must Close the
// connection.
func Accept(ctx context.Context, sock *net.UnixConn, opts Options) (*Conn, error) {
	opts.setDefaults()
	c := &Conn{
		transport: newTransport(sock),
		opts:      opts,
		queue:     make(chan *message, queueLength),
		free:      make(chan *message, queueLength),
		large:     make(chan struct{}, largePayloads),
	}
	for range queueLength {
		c.free <- new(message)
	}
	c.dma.init()
	stop := context.AfterFunc(ctx, func() { c.fail(ctx.Err()) })
	defer stop()
	if err := c.handshake(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		_ = c.close()
		return nil, fmt.Errorf("version handshake: %w", err)
	}
	return c, nil
}

// Peer returns what the client said of itself.
func (c *Conn) Peer() Capabilities { return c.peer }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.dead }

func (c *Conn) handshake() error {
	_ = c.sock.SetReadDeadline(time.Now().Add(c.opts.HandshakeTimeout))
	h, fds, err := c.receiveHeader()
	if err != nil {
		return err
	}
	closeFDs(fds)
	const maxVersion = 64 << 10
	if h.Command != CmdVersion || h.IsReply() || h.Size > maxVersion {
		return fmt.Errorf("%w: command %d of %d bytes came first", ErrMalformed, h.Command, h.Size)
	}
	payload := make([]byte, h.Size-HeaderSize)
	if err := c.receivePayload(payload); err != nil {
		return err
	}
	c.peer, err = parseVersion(payload)
	if err != nil {
		_ = c.replyError(h, err)
		return err
	}
	reply := putVersion(len(payload))
	if err := c.reply(h, len(reply), nil, func(b []byte) { copy(b, reply) }); err != nil {
		return err
	}
	return c.sock.SetReadDeadline(time.Time{})
}

// Serve executes the client's commands on d until the client closes the
// connection (nil), breaks the protocol or the connection (an error), or ctx
// ends (its error). It must be called once. When it has returned, no call to d
// is running and none will come, but the answers to DMA messages are still
// received, so that what is in flight can end: until Close.
func (c *Conn) Serve(ctx context.Context, layout *Layout, d Device) error {
	c.layout, c.device, c.served = layout, d, true
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.receive()
	}()
	for {
		// ctx first: a client that floods must not keep us.
		if err := ctx.Err(); err != nil {
			c.refuse()
			return err
		}
		select {
		case <-ctx.Done():
		case m, ok := <-c.queue:
			if !ok {
				return c.reason()
			}
			c.execute(m)
			c.recycle(m)
		}
	}
}

// refuse answers all further commands with an error, so that the client does
// not wait for us while we end.
func (c *Conn) refuse() {
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		for m := range c.queue {
			_ = c.replyError(m.Header, errShutdown)
			c.recycle(m)
		}
	}()
}

// reason is why the receiver ended; nil if the client left in an orderly way.
func (c *Conn) reason() error {
	<-c.dead
	if errors.Is(c.failed, io.EOF) {
		return nil
	}
	return c.failed
}

// Close ends the connection and releases everything that belongs to it.
func (c *Conn) Close() error {
	c.fail(ErrClosed)
	c.interrupt()
	c.wg.Wait()
	if c.served {
		for m := range c.queue {
			c.recycle(m)
		}
	}
	return c.close()
}

// receive is the receiver goroutine.
func (c *Conn) receive() {
	defer close(c.queue)
	for {
		h, fds, err := c.receiveHeader()
		if err == nil {
			if h.IsReply() {
				closeFDs(fds)
				err = c.receiveReply(h)
			} else {
				err = c.receiveCommand(h, fds)
			}
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

// receiveCommand queues a command; it owns fds.
func (c *Conn) receiveCommand(h Header, fds []int) error {
	var m *message
	select {
	case m = <-c.free:
	case <-c.dead:
		closeFDs(fds)
		return ErrClosed
	}
	m.Header, m.fds, m.isLarge = h, fds, false
	n := int(h.Size) - HeaderSize
	if n <= smallPayload {
		m.payload = m.smallBuf[:n]
	} else {
		select {
		case c.large <- struct{}{}:
			m.isLarge = true
			m.payload = make([]byte, n)
		case <-c.dead:
			c.recycle(m)
			return ErrClosed
		}
	}
	if err := c.receivePayload(m.payload); err != nil {
		c.recycle(m)
		return err
	}
	c.queue <- m // has room for all messages there are
	return nil
}

// recycle ends the life of a command.
func (c *Conn) recycle(m *message) {
	closeFDs(m.takeFDs())
	if m.isLarge {
		<-c.large
	}
	m.payload, m.isLarge = nil, false
	c.free <- m
}
