package lab

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser/irq"
)

const readWrite = vfiouser.RegionRead | vfiouser.RegionWrite

// epSession is one endpoint guest's time with the controller. The calls of
// vfiouser.Device come one at a time.
type epSession struct {
	l      *Lab
	conn   *vfiouser.Conn
	config *configSpace
	mem    *memory
	irqs   *irq.Interrupts
	posted postedQueue

	registers atomic.Uint64 // the address of BAR 0, or 0
}

var _ vfiouser.Device = (*epSession)(nil)

func (l *Lab) serveEndpoint(ctx context.Context, sock *net.UnixConn) error {
	conn, err := vfiouser.Accept(ctx, sock, vfiouser.Options{Logger: l.log})
	if err != nil {
		return err
	}
	s := &epSession{
		l: l, conn: conn, config: controllerConfig(), irqs: irq.New(0, numVectors),
	}
	s.mem = &memory{far: s}
	s.posted.init()
	l.resetController()
	l.epNow.Store(s)
	l.log.Info("the endpoint is here")

	var wg sync.WaitGroup
	wg.Go(func() { s.posted.run(s.forward) })
	stop := context.AfterFunc(ctx, s.posted.close)
	served := make(chan struct{})
	wg.Go(func() {
		select {
		case <-conn.Done():
			s.irqs.Release()
		case <-served:
		}
	})
	err = conn.Serve(ctx, endpointLayout(), s)

	stop()
	close(served)
	l.log.Info("the endpoint is gone", "err", err)
	l.resetController()
	for n := range l.functions {
		l.functions[n].blankMapped(s.mem)
	}
	l.epNow.Store(nil)
	s.posted.close()
	_ = conn.Close()
	wg.Wait()
	s.irqs.Release()
	s.mem.removeAll()
	return err
}

func endpointLayout() *vfiouser.Layout {
	l := new(vfiouser.Layout)
	l.Regions[registersBAR] = vfiouser.Region{Size: registersSize, Flags: readWrite, FD: -1}
	l.Regions[windowBAR] = vfiouser.Region{Size: windowSize, Flags: readWrite, FD: -1}
	l.Regions[msixBAR] = vfiouser.Region{Size: msixBARSize, Flags: readWrite, FD: -1}
	l.Regions[vfiouser.RegionConfig] = vfiouser.Region{Size: configSize, Flags: readWrite, FD: -1}
	l.IRQs[vfiouser.IRQMSIX] = vfiouser.IRQ{Flags: vfiouser.IRQEventfd, Count: numVectors}
	return l
}

// ReadRegion implements vfiouser.Device.
func (s *epSession) ReadRegion(region int, off uint64, p []byte) error {
	switch region {
	case vfiouser.RegionConfig:
		s.config.read(p, int(off))
	case registersBAR:
		s.l.readRegisters(off, p)
	case windowBAR:
		s.l.readOutbound(off, p)
	}
	return nil
}

// WriteRegion implements vfiouser.Device.
func (s *epSession) WriteRegion(region int, off uint64, p []byte) error {
	switch region {
	case vfiouser.RegionConfig:
		s.config.write(int(off), p)
		s.decode()
	case registersBAR:
		s.l.writeRegisters(off, p)
	case windowBAR:
		s.l.writeOutbound(off, p)
	}
	return nil
}

// MapDMA implements vfiouser.Device.
func (s *epSession) MapDMA(m vfiouser.DMAMap, fd int) error { return s.mem.add(m, fd) }

// UnmapDMA implements vfiouser.Device.
func (s *epSession) UnmapDMA(m vfiouser.DMAUnmap) error {
	s.mem.remove(m)
	return nil
}

// SetIRQs implements vfiouser.Device.
func (s *epSession) SetIRQs(set vfiouser.IRQSet) error { return s.irqs.Set(set) }

// Reset implements vfiouser.Device.
func (s *epSession) Reset() error {
	s.config = controllerConfig()
	s.decode()
	s.l.resetController()
	return nil
}

// forward executes a posted write of the RC.
func (s *epSession) forward(w *postedWrite) {
	if err := s.mem.write(w.data[:w.n], w.addr); err != nil {
		s.l.log.Warn("a write of the root complex went nowhere", "addr", w.addr, "err", err)
	}
}

// resetController puts the controller into its first state and ends the link.
// It waits for the DMA channels. The caller is the endpoint's executor.
func (l *Lab) resetController() {
	for n := range l.channels {
		l.channels[n].reset()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopLink()
	for n := range l.functions {
		l.functions[n].resetByEndpoint()
	}
	l.windows = [numWindows]mapping{}
	l.outbound.Store(new([]target))
	l.obErrorAddr, l.obErrors = 0, 0
}

// readOutbound executes an access of the endpoint's processor to RC memory. What
// fails reads ones.
func (l *Lab) readOutbound(off uint64, p []byte) {
	l.stats.outboundReads.Add(1)
	l.eachOutbound(off, p, func(m *memory, p []byte, addr uint64) error { return m.read(p, addr) },
		func(p []byte) { fill(p, 0xff) })
}

func (l *Lab) writeOutbound(off uint64, p []byte) {
	l.stats.outboundWrites.Add(1)
	l.eachOutbound(off, p, func(m *memory, p []byte, addr uint64) error { return m.write(p, addr) }, func([]byte) {})
}

func (l *Lab) eachOutbound(off uint64, p []byte, move func(*memory, []byte, uint64) error, fail func([]byte)) {
	for len(p) > 0 {
		w, n := lookup(*l.outbound.Load(), 0, off, uint64(len(p)))
		addr, err := uint64(0), errNothing
		if w != nil {
			addr = w.at(off)
			err = l.functions[w.function].reachHost(func(m *memory) error { return move(m, p[:n], addr) })
		}
		if err != nil {
			fail(p[:n])
			l.outboundFailed(addr)
		}
		p, off = p[n:], off+n
	}
}

// reachHost runs an access to the RC's memory, if the function may access it now.
func (f *function) reachHost(access func(*memory) error) error {
	h := f.host.Load()
	if h == nil || !f.masters.Load() {
		return errNothing
	}
	return access(h.mem)
}

func (l *Lab) outboundFailed(addr uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.obErrors++
	l.obErrorAddr = addr
	l.functions[0].tell(EventOBError)
}

func fill(p []byte, v byte) {
	for i := range p {
		p[i] = v
	}
}
