package vfiouser

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// ErrTimeout reports that the client did not answer a DMA message in time.
var ErrTimeout = errors.New("client does not answer")

// dmaInFlight is the number of DMA messages that may wait for their answer.
const dmaInFlight = 32

// dmaTable is the set of DMA messages that wait for their answer. A message's
// identifier is its slot's index and, above, a generation, so that an answer
// that comes too late finds nobody.
type dmaTable struct {
	slots [dmaInFlight]dmaSlot
	free  chan *dmaSlot
	over  chan struct{} // closed by EndDMA
	end   sync.Once
}

type dmaSlot struct {
	index uint16
	timer *time.Timer
	done  chan error // room for one

	mu      sync.Mutex
	id      uint16
	waiting Command // 0: nobody waits
	dst     []byte  // where DMA_READ's data goes
	layout  DMALayout
}

func (t *dmaTable) init() {
	t.free = make(chan *dmaSlot, dmaInFlight)
	t.over = make(chan struct{})
	for i := range t.slots {
		s := &t.slots[i]
		s.index, s.id, s.done = uint16(i), uint16(i), make(chan error, 1)
		s.timer = time.NewTimer(time.Hour)
		s.timer.Stop()
		t.free <- s
	}
}

func (t *dmaTable) find(id uint16) *dmaSlot { return &t.slots[id%dmaInFlight] }

// ReadDMA reads client memory at bus address addr by messages. It may be called
// from any goroutine until Close, and waits at most Options.DMATimeout for each
// message.
func (c *Conn) ReadDMA(p []byte, addr uint64) error { return c.transfer(CmdDMARead, p, addr) }

// WriteDMA writes client memory, as ReadDMA reads it.
func (c *Conn) WriteDMA(p []byte, addr uint64) error { return c.transfer(CmdDMAWrite, p, addr) }

// EndDMA has what waits for the client's memory fail, and what would from now on. The
// connection goes on otherwise. It may be called again.
func (c *Conn) EndDMA() { c.dma.end.Do(func() { close(c.dma.over) }) }

func (c *Conn) transfer(cmd Command, p []byte, addr uint64) error {
	layout, err := c.learnLayout()
	if err != nil {
		return err
	}
	chunk := min(c.peer.MaxTransfer, MaxTransfer)
	for len(p) > 0 {
		n := min(len(p), chunk)
		if err := c.dmaMessage(cmd, layout, p[:n], addr, uint64(n)); err != nil {
			return err
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// learnLayout finds out, once, which payload layout the client speaks.
func (c *Conn) learnLayout() (DMALayout, error) {
	if l := DMALayout(c.dmaLayout.Load()); l != dmaLayoutUnknown {
		return l, nil
	}
	c.probeMu.Lock()
	defer c.probeMu.Unlock()
	if l := DMALayout(c.dmaLayout.Load()); l != dmaLayoutUnknown {
		return l, nil
	}
	layout := DMALayoutSpec
	err := c.dmaMessage(CmdDMARead, DMALayoutSpec, nil, 0, probeCount)
	var errno syscall.Errno
	switch {
	case err == nil:
		layout = DMALayout32
	case !errors.As(err, &errno):
		return dmaLayoutUnknown, err // no answer at all
	case errno != syscall.EINVAL && errno != syscall.E2BIG:
		return layout, nil // refused for another reason: ask again next time
	}
	c.dmaLayout.Store(int32(layout))
	return layout, nil
}

// dmaMessage sends one DMA message and waits for the answer.
func (c *Conn) dmaMessage(cmd Command, layout DMALayout, p []byte, addr, count uint64) error {
	var s *dmaSlot
	select {
	case <-c.dma.over:
		return ErrClosed
	default:
	}
	select {
	case s = <-c.dma.free: // soon: each holder's wait is bounded
	case <-c.dead:
		return ErrClosed
	}
	defer func() { c.dma.free <- s }()
	id := s.begin(cmd, layout, p)

	h := Header{ID: id, Command: cmd, Flags: FlagCommand}
	var err error
	if cmd == CmdDMAWrite {
		err = c.send(h, dmaAccessSize+len(p), nil, func(b []byte) {
			clear(b[len(b)-4:])
			layout.put(b, addr, count)
			copy(b[layout.dataOffset():], p)
		})
	} else {
		err = c.send(h, dmaAccessSize, nil, func(b []byte) {
			clear(b)
			layout.put(b, addr, count)
		})
	}
	if err != nil {
		return s.end(err)
	}
	s.timer.Reset(c.opts.DMATimeout)
	defer s.timer.Stop()
	select {
	case err = <-s.done:
		return err
	case <-s.timer.C:
		return s.end(fmt.Errorf("%w to a DMA message within %v", ErrTimeout, c.opts.DMATimeout))
	case <-c.dma.over:
		return s.end(ErrClosed)
	case <-c.dead:
		return s.end(ErrClosed)
	}
}

// begin makes the slot wait for the answer to a new message.
func (s *dmaSlot) begin(cmd Command, layout DMALayout, dst []byte) (id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id += dmaInFlight
	s.waiting, s.layout, s.dst = cmd, layout, dst
	return s.id
}

// end gives up the wait with err, unless the answer came at the last moment.
// After it, nobody touches dst any more.
func (s *dmaSlot) end(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == 0 {
		return <-s.done
	}
	s.waiting, s.dst = 0, nil
	return err
}

// receiveReply takes the answer to a DMA message. Answers nobody waits for any
// more are passed over.
func (c *Conn) receiveReply(h Header) error {
	n := int(h.Size) - HeaderSize
	s := c.dma.find(h.ID)
	if !s.expects(h) {
		return c.skip(n)
	}
	// Into a buffer of our own: the waiter may give up while data trickles in.
	buf := c.replyBuffer(n)
	if err := c.receivePayload(buf); err != nil {
		return err
	}
	s.deliver(h, buf)
	return nil
}

func (c *Conn) replyBuffer(n int) []byte {
	if cap(c.dmaBuf) < n {
		c.dmaBuf = make([]byte, max(n, 4096+dmaAccessSize))
	}
	return c.dmaBuf[:n]
}

func (s *dmaSlot) expects(h Header) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting != 0 && s.waiting == h.Command && s.id == h.ID
}

// deliver ends the wait with the answer's outcome.
func (s *dmaSlot) deliver(h Header, payload []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting == 0 || s.id != h.ID {
		return
	}
	var err error
	switch {
	case h.Flags&FlagError != 0:
		errno := syscall.Errno(h.Errno)
		if errno == 0 {
			errno = syscall.EIO
		}
		err = fmt.Errorf("client refused DMA: %w", errno)
	case s.waiting == CmdDMARead:
		err = s.take(payload)
	}
	s.waiting, s.dst = 0, nil
	s.done <- err
}

// take copies the data of a DMA_READ answer.
func (s *dmaSlot) take(payload []byte) error {
	data, err := s.layout.data(payload, len(s.dst))
	if err != nil {
		return err
	}
	if len(s.dst) > 0 {
		if _, n, err := s.layout.parse(payload); err != nil || n != uint64(len(s.dst)) {
			return fmt.Errorf("%w: DMA_READ answered with %d of %d bytes", ErrMalformed, n, len(s.dst))
		}
	}
	copy(s.dst, data)
	return nil
}
