package lab

import (
	"fmt"
	"sync"
)

// copyAtOnce bounds what is copied between two looks at the link and the
// channel, in bytes.
const copyAtOnce = 256 << 10

// channel is one DMA channel. Its goroutine lives as long as it is enabled.
type channel struct {
	l *Lab
	n int

	mu      sync.Mutex
	changed sync.Cond
	control uint32
	ring    [2]uint32 // address, as written
	size    uint32
	head    uint32
	tail    uint32
	running bool // the goroutine is there
	stop    bool // and is to end
	halted  bool
	busy    bool
	stalled bool // by a fault

	// Of the goroutine: as it was when the channel was enabled.
	base   uint64
	mask   uint32
	bounce []byte
	raw    [DescSize]byte // the descriptor
	word   [4]byte        // its status
}

func (c *channel) init(l *Lab, n int) {
	c.l, c.n = l, n
	c.changed.L = &c.mu
}

// descriptor is one entry of a ring.
type descriptor struct {
	flags, length uint32
	local, remote uint64
}

func (c *channel) read(reg int) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch reg {
	case DMAControl:
		return c.control
	case DMAStatus:
		return when(c.running, DMARunning) | when(c.halted, DMAHalted) | when(c.busy, DMABusy)
	case DMARingLo:
		return c.ring[0]
	case DMARingHi:
		return c.ring[1]
	case DMASize:
		return c.size
	case DMAHead:
		return c.head
	case DMATail:
		return c.tail
	}
	return 0
}

func (c *channel) write(reg int, v uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch reg {
	case DMAControl:
		before := c.control
		c.control = v & (DMAEnable | DMAPause)
		switch on := c.control&DMAEnable != 0; {
		case on && before&DMAEnable == 0:
			c.enable()
		case !on:
			c.halted, c.stop = false, c.running
		}
	case DMARingLo:
		c.ring[0] = v
	case DMARingHi:
		c.ring[1] = v
	case DMASize:
		c.size = v
	case DMAHead:
		c.head = v
	}
	c.changed.Broadcast()
}

// enable starts the goroutine with the ring that the registers describe.
func (c *channel) enable() {
	for c.running { // it was told to stop, and will
		c.changed.Wait()
	}
	c.head, c.tail = 0, 0
	c.base, c.mask = pair(c.ring[:]), c.size-1
	if c.size < minRing || c.size > maxRing || c.size&c.mask != 0 || c.base%DescSize != 0 {
		c.halted = true
		c.l.log.Error("a DMA ring that cannot be", "channel", c.n, "address", c.base, "size", c.size)
		c.l.raiseEP(vectorChannel + c.n)
		return
	}
	c.halted, c.running, c.stop = false, true, false
	go c.run()
}

// reset stops the channel and waits until it touches nothing any more.
func (c *channel) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.control, c.stop = 0, c.running
	c.changed.Broadcast()
	for c.running {
		c.changed.Wait()
	}
	c.ring, c.size, c.head, c.tail, c.halted = [2]uint32{}, 0, 0, 0, false
}

// run executes descriptors until the channel is disabled or halts.
func (c *channel) run() {
	for {
		tail, ok := c.next()
		if !ok {
			return
		}
		flags, err := c.execute(tail)
		c.mu.Lock()
		c.busy = false
		if err != nil {
			c.halted, c.running = c.control&DMAEnable != 0, false
		} else {
			c.tail++
		}
		c.changed.Broadcast()
		c.mu.Unlock()
		if err != nil {
			c.l.log.Error("a DMA channel halts", "channel", c.n, "err", err)
		}
		if err != nil || flags&DescInterrupt != 0 {
			c.l.stats.dmaInterrupts.Add(1)
			c.l.raiseEP(vectorChannel + c.n)
		}
		if err != nil {
			return
		}
	}
}

// next waits for a descriptor; ok is false when the channel has been disabled.
func (c *channel) next() (tail uint32, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.stop && (c.head == c.tail || c.control&DMAPause != 0 || c.stalled) {
		c.changed.Wait()
	}
	if c.stop {
		c.running = false
		c.changed.Broadcast()
		return 0, false
	}
	c.busy = true
	return c.tail, true
}

// execute executes one descriptor and writes its status. An error means that the
// ring itself cannot be used. The flags returned ask for an interrupt also when
// the descriptor failed.
func (c *channel) execute(tail uint32) (flags uint32, err error) {
	ep := c.l.epNow.Load()
	if ep == nil {
		return 0, errNothing
	}
	c.mu.Lock()
	ahead := c.head - tail
	c.mu.Unlock()
	if ahead > c.mask+1 {
		return 0, fmt.Errorf("%d descriptors were published in a ring of %d", ahead, c.mask+1)
	}
	at := c.base + uint64(tail&c.mask)*DescSize
	raw := c.raw[:]
	if err := ep.mem.read(raw, at); err != nil {
		return 0, fmt.Errorf("read a descriptor: %w", err)
	}
	d := descriptor{
		flags: le.Uint32(raw[DescFlags:]), length: le.Uint32(raw[DescLength:]),
		local: le.Uint64(raw[DescLocal:]), remote: le.Uint64(raw[DescRemote:]),
	}
	status := c.transfer(ep.mem, d)
	if status != DescDone {
		d.flags |= DescInterrupt
		c.l.log.Info("a DMA descriptor failed", "channel", c.n, "status", status,
			"local", d.local, "remote", d.remote, "length", d.length)
	}
	le.PutUint32(c.word[:], status)
	if err := ep.mem.write(c.word[:], at+DescStatus); err != nil {
		return 0, fmt.Errorf("write a descriptor's status: %w", err)
	}
	return d.flags, nil
}

// transfer moves a descriptor's data and returns its status.
func (c *channel) transfer(ep *memory, d descriptor) uint32 {
	last := uint64(d.length) - 1
	if d.length == 0 || d.flags&^descFlagBits != 0 || d.flags>>functionShift >= numFunctions || d.local+last < d.local || d.remote+last < d.remote {
		return DescMalformed
	}
	if c.l.injectError() {
		return DescInjected
	}
	c.l.stats.dmaTransfers.Add(1)
	for n := uint64(d.length); n > 0; {
		if !c.goOn() {
			return DescAborted
		}
		moved, status := c.some(ep, d, min(n, copyAtOnce))
		if status != DescDone {
			return status
		}
		c.l.stats.dmaBytes.Add(moved)
		d.local, d.remote, n = d.local+moved, d.remote+moved, n-moved
	}
	return DescDone
}

// goOn waits while the channel is stalled, and says whether it may go on at all.
func (c *channel) goOn() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.stalled && !c.stop {
		c.changed.Wait()
	}
	return !c.stop
}

// some moves up to n bytes.
func (c *channel) some(ep *memory, d descriptor, n uint64) (moved uint64, status uint32) {
	if !c.l.linkUp.Load() {
		return 0, DescLinkDown
	}
	f := &c.l.functions[d.flags>>functionShift&functionMask]
	h := f.host.Load()
	if h == nil || !f.masters.Load() {
		return 0, DescUnsupported
	}
	local, fault := ep, uint32(DescLocalFault)
	if d.flags&DescInsideRC != 0 {
		local, fault = h.mem, DescUnsupported
	}
	moved, err := copyAcross(h.mem, local, d.remote, d.local, n, d.flags&DescFromRC != 0)
	switch {
	case err != nil:
		return 0, fault
	case moved > 0:
		return moved, DescDone
	}
	n = min(n, granule)
	if d.flags&DescFromRC != 0 {
		return n, c.byMessages(h.mem, local, d.remote, d.local, n, DescUnsupported, fault)
	}
	return n, c.byMessages(local, h.mem, d.local, d.remote, n, fault, DescUnsupported)
}

// byMessages copies n bytes of which some are not mapped. It returns the status
// that stands for the end at which it failed.
func (c *channel) byMessages(from, to *memory, src, dst, n uint64, readFault, writeFault uint32) uint32 {
	if c.bounce == nil {
		c.bounce = make([]byte, granule)
	}
	p := c.bounce[:n]
	if from.read(p, src) != nil {
		return readFault
	}
	if to.write(p, dst) != nil {
		return writeFault
	}
	return DescDone
}
