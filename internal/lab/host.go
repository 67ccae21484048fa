package lab

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser/irq"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// hostSession is one root complex's time with the function, as the function was
// when it was plugged in. The calls of vfiouser.Device come one at a time.
type hostSession struct {
	l      *Lab
	f      *function
	conn   *vfiouser.Conn
	mem    *memory
	irqs   *irq.Interrupts
	layout *vfiouser.Layout
	mapped []target // what the RC's guest has mapped

	// Guarded by the lab's lock.
	trained  bool // the RC has begun to use the function
	dead     bool // the endpoint stopped the link under it
	asserted bool // the pin, as the endpoint wants it
}

var _ vfiouser.Device = (*hostSession)(nil)

// serveHost serves one root complex. While the link is not started there is nothing
// to show, and while another one is there, no place: it waits. One whose link was
// stopped does not count; it may stay, and reads ones.
func (f *function) serveHost(ctx context.Context, sock *net.UnixConn) error {
	l := f.l
	if err := l.await(ctx, "there is a function to show", f.vacant); err != nil {
		_ = sock.Close()
		return err
	}
	conn, err := vfiouser.Accept(ctx, sock, vfiouser.Options{Logger: l.log})
	if err != nil {
		return err
	}
	s := &hostSession{l: l, f: f, conn: conn, mem: &memory{far: conn}}
	l.mu.Lock()
	s.irqs = irq.New(f.msiVectors(), f.msixVectors())
	s.setLayout()
	if f.vacant() {
		f.host.Store(s)
	} else {
		s.dead = true // the link was stopped, or taken, at this moment
	}
	l.mu.Unlock()
	l.log.Info("the root complex is here", "function", f.n, "mapped", s.mapped)

	served := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-conn.Done():
			s.irqs.Release()
		case <-served:
		}
	})
	err = conn.Serve(ctx, s.layout, s)

	close(served)
	l.log.Info("the root complex is gone", "function", f.n, "err", err)
	l.mu.Lock()
	s.dead = true
	if f.host.Load() == s {
		if f.n > 0 {
			f.changes(f.hotReset)
		}
		l.train()
		f.host.Store(nil)
		l.signal()
	}
	l.mu.Unlock()
	_ = conn.Close()
	wg.Wait()
	s.irqs.Release()
	s.mem.removeAll()
	for n := range numBARs {
		if r := s.layout.Regions[n]; r.FD >= 0 && r.Size > 0 {
			_ = unix.Close(r.FD)
		}
	}
	return err
}

// setLayout describes the function to the RC's monitor. The caller holds the
// lab's lock.
func (s *hostSession) setLayout() {
	f := s.f
	s.layout = new(vfiouser.Layout)
	for n := range numBARs {
		if !f.hasBAR(n) {
			continue
		}
		r := vfiouser.Region{Size: f.size(n), Flags: readWrite, FD: -1}
		if s.l.cfg.TrapBARs>>n&1 == 0 {
			s.mapRanges(n, &r)
			splitMSIX(f, n, &r)
		}
		s.layout.Regions[n] = r
	}
	s.layout.Regions[vfiouser.RegionConfig] = vfiouser.Region{Size: configSize, Flags: readWrite, FD: -1}
	if f.image[virtiopci.ConfigInterruptPin] != 0 {
		s.layout.IRQs[vfiouser.IRQINTx] = vfiouser.IRQ{
			Flags: vfiouser.IRQEventfd | vfiouser.IRQMaskable | vfiouser.IRQAutomasked, Count: 1,
		}
	}
	s.layout.IRQs[vfiouser.IRQMSI] = vfiouser.IRQ{Flags: vfiouser.IRQEventfd, Count: uint32(f.msiVectors())}
	s.layout.IRQs[vfiouser.IRQMSIX] = vfiouser.IRQ{Flags: vfiouser.IRQEventfd, Count: uint32(f.msixVectors())}
}

// describes says whether the monitor was told what the function is now. The caller
// holds the lab's lock.
func (s *hostSession) describes() bool {
	for n := range numBARs {
		if s.layout.Regions[n].Size != s.f.size(n) {
			return false
		}
	}
	for _, t := range s.mapped {
		if !slices.Contains(*s.f.inbound.Load(), t) {
			return false
		}
	}
	return s.layout.IRQs[vfiouser.IRQMSI].Count == uint32(s.f.msiVectors()) &&
		s.layout.IRQs[vfiouser.IRQMSIX].Count == uint32(s.f.msixVectors()) &&
		s.layout.IRQs[vfiouser.IRQINTx].Count == when(s.f.image[virtiopci.ConfigInterruptPin] != 0, 1)
}

// mapRanges offers the ranges of a BAR that are the endpoint's RAM to be mapped.
// A region has one file and one offset in it, so only ranges that lie in the
// file as they lie in the BAR can be: those that agree with the first one.
func (s *hostSession) mapRanges(bar int, r *vfiouser.Region) {
	ep := s.l.epNow.Load()
	if ep == nil {
		return
	}
	var inode unix.Stat_t
	for _, t := range *s.f.inbound.Load() {
		if t.bar != bar {
			continue
		}
		fd, at, ok := ep.mem.file(t.addr, t.size)
		if !ok || at < t.off {
			_ = closeValid(fd)
			continue
		}
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		switch {
		case err == nil && r.FD < 0:
			r.FD, r.Offset, inode = fd, at-t.off, st
		case err != nil || at-t.off != r.Offset || st.Ino != inode.Ino || st.Dev != inode.Dev:
			_ = unix.Close(fd)
			continue
		default:
			_ = unix.Close(fd)
		}
		r.Areas = append(r.Areas, vfiouser.Area{Offset: t.off, Size: t.size})
		s.mapped = append(s.mapped, t)
	}
}

// splitMSIX keeps the page of the MSI-X table mapped. QEMU takes it out of an area
// that is a whole BAR, but not out of several: then only the table itself is
// trapped, by the monitor.
func splitMSIX(f *function, bar int, r *vfiouser.Region) {
	if f.msixVectors() == 0 || int(f.msixTable&7) != bar && int(f.msixPBA&7) != bar {
		return
	}
	if len(r.Areas) == 1 && r.Areas[0].Size == r.Size && r.Size > granule {
		r.Areas = []vfiouser.Area{{Offset: 0, Size: granule}, {Offset: granule, Size: r.Size - granule}}
	}
}

func closeValid(fd int) error {
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// mappedByHost says whether the RC's guest has a range mapped now, so that it
// cannot be changed. The caller holds the lab's lock.
func (f *function) mappedByHost(t *target) bool {
	h := f.host.Load()
	if h == nil || h.dead || f.l.forgotten {
		return false
	}
	for n := range h.mapped {
		if h.mapped[n].overlaps(t) {
			return true
		}
	}
	return false
}

// blankMapped fills what the RC's guest still has mapped of an endpoint that is
// gone with ones, which is what it would read.
func (f *function) blankMapped(ep *memory) {
	h := f.host.Load()
	if h == nil {
		return
	}
	ones := make([]byte, granule)
	fill(ones, 0xff)
	for _, t := range h.mapped {
		if !ep.isRAM(t.addr, t.size) {
			continue
		}
		for off := uint64(0); off < t.size; off += granule {
			if ep.write(ones, t.addr+off) != nil {
				break
			}
		}
	}
}

// begin makes the link train at the RC's first use of the function.
func (s *hostSession) begin() {
	if !s.trained {
		s.trained = true
		s.l.train()
	}
}

// ReadRegion implements vfiouser.Device.
func (s *hostSession) ReadRegion(region int, off uint64, p []byte) error {
	if region != vfiouser.RegionConfig {
		if !s.use() {
			fill(p, 0xff)
			return nil
		}
		s.f.readInbound(region, off, p)
		return nil
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.dead || s.l.dropped || s.l.forgotten {
		fill(p, 0xff)
		return nil
	}
	s.f.read(p, int(off))
	return nil
}

// WriteRegion implements vfiouser.Device.
func (s *hostSession) WriteRegion(region int, off uint64, p []byte) error {
	if region != vfiouser.RegionConfig {
		if s.use() {
			s.f.writeInbound(region, off, p)
		}
		return nil
	}
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	if s.dead || s.l.dropped || s.l.forgotten {
		return nil
	}
	s.begin()
	s.f.changes(func() { s.f.write(int(off), p) })
	s.l.used = s.l.used || s.f.memoryOn() || s.f.busMaster()
	return nil
}

// use says whether the RC is the one that the link leads to.
func (s *hostSession) use() bool {
	if s.f.host.Load() != s {
		return false
	}
	if !s.l.linkUp.Load() {
		s.l.mu.Lock()
		defer s.l.mu.Unlock()
		s.begin()
	}
	return true
}

// MapDMA implements vfiouser.Device.
func (s *hostSession) MapDMA(m vfiouser.DMAMap, fd int) error { return s.mem.add(m, fd) }

// UnmapDMA implements vfiouser.Device.
func (s *hostSession) UnmapDMA(m vfiouser.DMAUnmap) error {
	s.mem.remove(m)
	return nil
}

// SetIRQs implements vfiouser.Device.
func (s *hostSession) SetIRQs(set vfiouser.IRQSet) error {
	if set.Index > vfiouser.IRQMSIX && set.Count > 0 {
		return fmt.Errorf("interrupt index %d: %w", set.Index, syscall.EINVAL)
	}
	return s.irqs.Set(set)
}

// Reset implements vfiouser.Device. Monitors reset a function before its first
// use, more than once. Later, a reset of the first function is one of the device: a
// machine that is reset does not say which it is, and resets all of them.
func (s *hostSession) Reset() error {
	s.l.mu.Lock()
	defer s.l.mu.Unlock()
	switch {
	case s.dead:
	case !s.trained:
		s.begin()
	case s.f.n == 0 && s.l.used:
		s.l.perst()
	default:
		s.f.changes(s.f.hotReset)
	}
	return nil
}

// readInbound executes a read of the RC. It pushes the posted writes before it
// ahead, and what is not there reads ones.
func (f *function) readInbound(bar int, off uint64, p []byte) {
	f.l.stats.inboundReads.Add(1)
	ep := f.l.epNow.Load()
	if ep == nil || !f.decodes.Load() || !ep.posted.flush() {
		fill(p, 0xff)
		return
	}
	for len(p) > 0 {
		t, n := lookup(*f.inbound.Load(), bar, off, uint64(len(p)))
		if t == nil || ep.mem.read(p[:n], t.at(off)) != nil {
			fill(p[:n], 0xff)
		}
		p, off = p[n:], off+n
	}
}

// writeInbound executes a posted write of the RC.
func (f *function) writeInbound(bar int, off uint64, p []byte) {
	f.l.stats.inboundWrites.Add(1)
	ep := f.l.epNow.Load()
	if ep == nil || !f.decodes.Load() {
		return
	}
	for len(p) > 0 {
		t, n := lookup(*f.inbound.Load(), bar, off, uint64(len(p)))
		if t != nil {
			ep.post(p[:n], t.at(off))
		}
		p, off = p[n:], off+n
	}
}

// post writes to the endpoint's guest: to memory at once, unless that would
// overtake an earlier write.
func (s *epSession) post(p []byte, addr uint64) {
	if s.mem.isRAM(addr, uint64(len(p))) && s.posted.idle() {
		s.forwardNow(p, addr)
		return
	}
	s.l.stats.posted.Add(1)
	for len(p) > 0 {
		n := min(len(p), len(postedWrite{}.data))
		if !s.posted.put(addr, p[:n]) {
			s.l.log.Warn("a write of the root complex is dropped: the endpoint stands still", "addr", addr)
			return
		}
		p, addr = p[n:], addr+uint64(n)
	}
}

func (s *epSession) forwardNow(p []byte, addr uint64) {
	if err := s.mem.write(p, addr); err != nil {
		s.l.log.Warn("a write of the root complex went nowhere", "addr", addr, "err", err)
	}
}
