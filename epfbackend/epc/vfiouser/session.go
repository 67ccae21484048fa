package vfiouser

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser/irq"
)

// patience bounds how long a command waits for the function: clients give up on
// a device that takes five seconds to answer.
const patience = 2 * time.Second

// session is one client's time with the function. To the connection it is a
// vfio-user device, to the function a controller.
type session struct {
	fn     epc.Function
	conn   *vfiouser.Conn
	log    *slog.Logger
	desc   epc.Description
	config *epc.ConfigSpace
	tables [6][]byte // BARs of the MSI-X structures, which the client emulates
	bars   [6]*barMemory
	host   hostMemory
	irqs   *irq.Interrupts

	mu sync.Mutex // the function is called one call at a time
}

var (
	_ vfiouser.Device = (*session)(nil)
	_ epc.Controller  = (*session)(nil)
)

func newSession(fn epc.Function, conn *vfiouser.Conn, log *slog.Logger) (*session, error) {
	config, err := epc.NewConfigSpace(fn)
	if err != nil {
		return nil, err
	}
	s := &session{fn: fn, conn: conn, log: log, desc: fn.Describe(), config: config}
	if m := s.desc.MSIX; m.Vectors > 0 {
		for _, bar := range []int{m.TableBAR, m.PBABAR} {
			s.tables[bar] = make([]byte, s.desc.BARs[bar].Size)
		}
	}
	for i, bar := range s.desc.BARs {
		if len(bar.Memory) == 0 {
			continue
		}
		if s.bars[i], err = newBARMemory(i, bar); err != nil {
			s.releaseBARs()
			return nil, err
		}
	}
	s.host.init(s)
	s.irqs = irq.New(0, s.desc.MSIX.Vectors)
	fn.Attach(s)
	return s, nil
}

// serve executes the client's commands until it goes or ctx ends.
func (s *session) serve(ctx context.Context) error {
	// Whoever is stuck in an eventfd of the client's is freed when it goes.
	served := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-s.conn.Done():
			s.irqs.Release()
		case <-served:
		}
	})
	defer watch.Wait()
	defer close(served)
	return s.conn.Serve(ctx, s.layout(), s)
}

// end detaches the function. The memory it may have used is still mapped. The
// client hears of what is finished meanwhile, for a while: one that does not answer
// must not keep us.
func (s *session) end() error {
	mute := time.AfterFunc(2*patience, func() {
		s.conn.EndDMA()
		s.irqs.Release()
	})
	defer mute.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.host.endChange()
	return s.fn.Detach()
}

// release gives up what the client gave us. The function must be detached.
func (s *session) release() {
	s.host.release()
	s.irqs.Release()
	s.releaseBARs()
}

func (s *session) layout() *vfiouser.Layout {
	const readWrite = vfiouser.RegionRead | vfiouser.RegionWrite
	l := new(vfiouser.Layout)
	for i, bar := range s.desc.BARs {
		if bar.Size > 0 {
			l.Regions[i] = vfiouser.Region{Size: bar.Size, Flags: readWrite, FD: -1}
		}
		if m := s.bars[i]; m != nil {
			l.Regions[i].FD, l.Regions[i].Areas = m.fd, m.areas
		}
	}
	l.Regions[vfiouser.RegionConfig] = vfiouser.Region{Size: epc.ConfigSpaceSize, Flags: readWrite, FD: -1}
	if s.desc.Identity.InterruptPin != 0 {
		l.IRQs[vfiouser.IRQINTx] = vfiouser.IRQ{
			Flags: vfiouser.IRQEventfd | vfiouser.IRQMaskable | vfiouser.IRQAutomasked, Count: 1,
		}
	}
	// Without NORESIZE: with it, QEMU tears all vectors down to add one.
	l.IRQs[vfiouser.IRQMSIX] = vfiouser.IRQ{Flags: vfiouser.IRQEventfd, Count: uint32(s.desc.MSIX.Vectors)}
	return l
}

// ReadRegion implements vfiouser.Device.
func (s *session) ReadRegion(region int, off uint64, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.host.endChange()
	switch {
	case region == vfiouser.RegionConfig:
		s.config.Read(int(off), p)
	case s.tables[region] != nil:
		copy(p, s.tables[region][off:])
	case s.bars[region] != nil && s.desc.BARs[region].IsMemory(off, uint64(len(p))):
		s.bars[region].read(p, off)
	default:
		s.fn.ReadBAR(region, off, p)
	}
	return nil
}

// WriteRegion implements vfiouser.Device.
func (s *session) WriteRegion(region int, off uint64, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.host.endChange()
	switch {
	case region == vfiouser.RegionConfig:
		s.config.Write(int(off), p)
	case s.tables[region] != nil:
		copy(s.tables[region][off:], p)
	case s.bars[region] != nil && s.desc.BARs[region].IsMemory(off, uint64(len(p))):
		s.bars[region].write(off, p)
	default:
		s.fn.WriteBAR(region, off, p)
	}
	return nil
}

// Reset implements vfiouser.Device.
func (s *session) Reset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.host.endChange()
	ctx, cancel := context.WithTimeout(background, patience)
	defer cancel()
	err := s.fn.Reset(ctx)
	s.config.Reset()
	if err != nil {
		return fmt.Errorf("%w: %w", err, syscall.EBUSY)
	}
	return nil
}

// SetIRQs implements vfiouser.Device.
func (s *session) SetIRQs(set vfiouser.IRQSet) error { return s.irqs.Set(set) }

// MapDMA implements vfiouser.Device.
func (s *session) MapDMA(m vfiouser.DMAMap, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.host.add(m, fd)
}

// UnmapDMA implements vfiouser.Device.
func (s *session) UnmapDMA(m vfiouser.DMAUnmap) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.host.remove(m)
}

// Memory implements epc.Controller.
func (s *session) Memory() *epc.Memory { return s.host.table }

// BARMemory implements epc.Controller.
func (s *session) BARMemory(bar int) []byte {
	if m := s.bars[bar]; m != nil {
		return m.mapping.Bytes()
	}
	return nil
}

// MSIXEnabled implements epc.Controller.
func (s *session) MSIXEnabled() bool { return s.config.MSIXEnabled() }

// RaiseMSIX implements epc.Controller.
func (s *session) RaiseMSIX(vector uint16) error { return s.irqs.RaiseMSIX(int(vector)) }

// SetINTx implements epc.Controller.
func (s *session) SetINTx(asserted bool) error { return s.irqs.SetINTx(asserted) }

// ReadHost implements epc.Transfer.
func (s *session) ReadHost(p []byte, addr uint64) error { return s.conn.ReadDMA(p, addr) }

// WriteHost implements epc.Transfer.
func (s *session) WriteHost(p []byte, addr uint64) error { return s.conn.WriteDMA(p, addr) }
