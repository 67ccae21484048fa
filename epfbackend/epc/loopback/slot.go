package loopback

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-multierror"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// patience bounds how long the function may keep the host waiting.
const patience = 5 * time.Second

// ErrUnplugged reports an access to a slot without a function.
var ErrUnplugged = errors.New("no function in the slot")

// Slot is a place for one function. It is the host's way to it (rc.Bus), and the
// function's controller. All methods may be called from any goroutine.
type Slot struct {
	faults *Faults
	host   hostMemory
	pins   pins

	mu     sync.Mutex // held for each access: the function sees one at a time
	fn     epc.Function
	config *epc.ConfigSpace
	tables [6][]byte // BARs that hold MSI-X structures
	bars   [6]*shm.Mapping
	desc   epc.Description
	bells  []int // eventfd of each queue
	rang   bool  // the doorbell, when there was none
	record []byte
	mapped atomic.Bool
	untold atomic.Bool // a reset
}

var _ rc.Bus = (*Slot)(nil)

// ErrInUse reports a function that uses host memory when it said that it does not.
var ErrInUse = errors.New("host memory is in use by a function that is paused or reset")

// Plug puts a function in a slot and gives it its controller. faults may be nil.
func Plug(fn epc.Function, faults *Faults) (*Slot, error) {
	return plug(fn, faults, nil)
}

// PlugEngine is Plug with a DMA engine: the controller is an epc.Moving, and none of
// the host's memory is mapped. All of the function's transfers use the engine's link.
func PlugEngine(fn epc.Function, faults *Faults, engine *Engine) (*Slot, error) {
	return plug(fn, faults, engine)
}

func plug(fn epc.Function, faults *Faults, engine *Engine) (*Slot, error) {
	if faults == nil {
		faults = new(Faults)
	}
	s := &Slot{faults: faults, fn: fn, desc: fn.Describe(), record: make([]byte, recordLen)}
	var err error
	if s.config, err = epc.NewConfigSpace(fn); err != nil {
		return nil, err
	}
	if m := s.desc.MSIX; m.Vectors > 0 {
		s.tables[m.TableBAR] = make([]byte, s.desc.BARs[m.TableBAR].Size)
		s.tables[m.PBABAR] = make([]byte, s.desc.BARs[m.PBABAR].Size)
	}
	if err := s.makeBARMemory(); err != nil {
		return nil, err
	}
	s.host.init(faults, engine)
	s.pins.init(faults)
	if r, ok := fn.(epc.Rung); ok {
		s.bells = r.Doorbells()
	}
	if engine != nil {
		engine.host = &s.host
	}
	fn.Attach(s.controller())
	return s, nil
}

// makeBARMemory makes the memory of the BARs that have some.
func (s *Slot) makeBARMemory() error {
	for i, bar := range s.desc.BARs {
		if len(bar.Memory) == 0 && bar.Doorbell.Size == 0 {
			continue
		}
		fd, m, err := shm.NewMemory(fmt.Sprintf("bar%d", i), int(bar.Size))
		if err != nil {
			return err
		}
		s.bars[i] = m
		_ = unix.Close(fd)
	}
	return nil
}

func (s *Slot) closeBARMemory() error {
	var errs *multierror.Error
	for i, m := range s.bars {
		if m != nil {
			errs = multierror.Append(errs, m.Close())
			s.bars[i] = nil
		}
	}
	return errs.ErrorOrNil()
}

// Unplug takes the function out, whatever the host is doing with it. When it
// returns, the function uses nothing of the host any more.
func (s *Slot) Unplug() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fn == nil {
		return nil
	}
	var errs *multierror.Error
	errs = multierror.Append(errs, s.fn.Detach(), s.host.quiet())
	s.fn = nil
	errs = multierror.Append(errs, s.closeBARMemory())
	s.pins.close()
	return multierror.Append(errs, s.host.close()).ErrorOrNil()
}

// Suspend lets the function be left, and Continue lets another one go on: the host
// sees nothing of it. In between, what the host does to memory stays.
func (s *Slot) Suspend() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return s.Kill(func() error { return s.fn.(epc.Lasting).Suspend(ctx) })
}

// Kill is Suspend for a function that comes to its end in another way.
func (s *Slot) Kill(end func() error) error {
	return s.access(func() error {
		err := end()
		s.bells = nil
		return err
	})
}

// Continue ends a Suspend, or a Kill.
func (s *Slot) Continue(fn epc.Function) error { return s.goOn(fn, false) }

// ContinueGone is Continue where the host's end may have gone.
func (s *Slot) ContinueGone(fn epc.Function) error { return s.goOn(fn, true) }

func (s *Slot) goOn(fn epc.Function, gone bool) error {
	return s.access(func() error {
		if err := fn.(epc.Lasting).Continue(s.controller(), gone); err != nil {
			return err
		}
		s.occupy(fn)
		return nil
	})
}

// Attach ends a Suspend or a Kill with a function that begins anew.
func (s *Slot) Attach(fn epc.Function) error {
	return s.access(func() error {
		fn.Attach(s.controller())
		s.occupy(fn)
		return nil
	})
}

// occupy makes fn the slot's function.
func (s *Slot) occupy(fn epc.Function) {
	s.fn, s.bells = fn, fn.(epc.Rung).Doorbells()
	if s.rang {
		s.rang = false
		for _, fd := range s.bells {
			signal(fd)
		}
	}
}

// controller returns the slot as the function sees it.
func (s *Slot) controller() epc.Controller {
	if s.host.engine != nil {
		return movingController{controller{s}}
	}
	return controller{s}
}

// Record returns what outlives a function.
func (s *Slot) Record() []byte { return s.record }

// ReadConfig implements rc.Registers.
func (s *Slot) ReadConfig(off int, p []byte) error {
	return s.access(func() error { s.config.Read(off, p); return nil })
}

// WriteConfig implements rc.Registers.
func (s *Slot) WriteConfig(off int, p []byte) error {
	return s.access(func() error {
		s.config.Write(off, p)
		s.route()
		return nil
	})
}

// route sends interrupts where the configuration space says.
func (s *Slot) route() {
	var command [2]byte
	s.config.Read(virtiopci.ConfigCommand, command[:])
	off := binary.LittleEndian.Uint16(command[:])&virtiopci.CommandINTxDisable != 0
	s.pins.configure(s.config.MSIXEnabled(), off)
}

// access lets f access the function.
func (s *Slot) access(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fn == nil {
		return ErrUnplugged
	}
	return f()
}

// ReadBAR implements rc.Registers.
func (s *Slot) ReadBAR(bar int, off uint64, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.inside(bar, off, p); err != nil {
		return err
	}
	if m := s.bars[bar]; m != nil && s.desc.BARs[bar].IsMemory(off, uint64(len(p))) {
		shm.Of(m.Bytes()).Read(p, int(off))
		return nil
	}
	if t := s.tables[bar]; t != nil {
		copy(p, t[off:])
		return nil
	}
	s.fn.ReadBAR(bar, off, p)
	return nil
}

// WriteBAR implements rc.Registers.
func (s *Slot) WriteBAR(bar int, off uint64, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.inside(bar, off, p); err != nil {
		return err
	}
	if d := s.desc.BARs[bar].Doorbell; d.Holds(off, uint64(len(p))) {
		s.ring(bar, int(off), p)
		return nil
	}
	if m := s.bars[bar]; m != nil && s.desc.BARs[bar].IsMemory(off, uint64(len(p))) {
		shm.Of(m.Bytes()).Write(int(off), p)
		return nil
	}
	if t := s.tables[bar]; t != nil {
		copy(t[off:], p)
		return nil
	}
	s.fn.WriteBAR(bar, off, p)
	return nil
}

func (s *Slot) inside(bar int, off uint64, p []byte) error {
	if s.fn == nil {
		return ErrUnplugged
	}
	if size := s.desc.BARs[bar].Size; off > size || uint64(len(p)) > size-off {
		return fmt.Errorf("access to BAR %d at %#x, %d bytes: outside", bar, off, len(p))
	}
	return nil
}

// ring is a write to the doorbell, which is memory until it is mapped.
func (s *Slot) ring(bar, off int, p []byte) {
	if !s.mapped.Load() {
		shm.Of(s.bars[bar].Bytes()).Write(off, p)
		return
	}
	if len(p) == 2 {
		s.rang = s.rang || s.bells == nil
		if i := int(binary.LittleEndian.Uint16(p)); i < len(s.bells) {
			signal(s.bells[i])
		}
	}
}

// Map implements rc.Bus.
func (s *Slot) Map(r rc.Region) error {
	return s.paused(func() error { return s.host.add(r) })
}

// Unmap implements rc.Bus.
func (s *Slot) Unmap(addr, size uint64) error {
	return s.paused(func() error { return s.host.remove(addr, size) })
}

// paused changes host memory while the function does not use it.
func (s *Slot) paused(change func() error) error {
	return s.access(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		defer s.fn.Resume()
		if err := s.fn.Pause(ctx); err != nil {
			return err
		}
		if err := s.host.quiet(); err != nil {
			return err
		}
		return change()
	})
}

// Vectors implements rc.Bus.
func (s *Slot) Vectors(fds []int) error {
	s.pins.vectors(slices.Clone(fds))
	return nil
}

// INTx implements rc.Bus.
func (s *Slot) INTx(fd int) error {
	s.pins.intx(fd)
	return nil
}

// Reset implements rc.Bus.
func (s *Slot) Reset() error {
	return s.access(func() error {
		s.forget()
		return s.tell(s.fn.Reset)
	})
}

// ResetToldLate is Reset, of which the function is told only when another driver may have
// begun: after meanwhile.
func (s *Slot) ResetToldLate(meanwhile func()) error {
	err := s.access(func() error {
		s.untold.Store(true)
		s.forget()
		return nil
	})
	if err != nil {
		return err
	}
	meanwhile()
	return s.access(func() error {
		defer s.untold.Store(false)
		return s.tell(s.fn.HostGone)
	})
}

// forget is what a reset does to the slot itself: no BAR has a place any more.
func (s *Slot) forget() {
	s.config.Reset()
	s.mapped.Store(false)
	s.route()
}

// tell tells the function of a reset, after which it must leave host memory alone.
func (s *Slot) tell(reset func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := reset(ctx); err != nil {
		return err
	}
	return s.host.quiet()
}

// Rings says whether the host's notifications reach the doorbell, not memory.
func (s *Slot) Rings() bool { return s.mapped.Load() }

// controller is the slot as the function sees it.
type controller struct{ s *Slot }

var (
	_ epc.Controller     = controller{}
	_ epc.DoorbellMapper = controller{}
	_ epc.Recording      = controller{}
	_ epc.Late           = controller{}
)

// recordLen is as much as kernels give an endpoint's function.
const recordLen = 64 << 10

// Record implements epc.Recording.
func (c controller) Record() []byte { return c.s.record }

// Settled implements epc.Late.
func (c controller) Settled() bool { return !c.s.untold.Load() }

// MapDoorbell implements epc.DoorbellMapper.
func (c controller) MapDoorbell() bool {
	if c.s.faults.doorbellLate() {
		return false
	}
	c.s.mapped.Store(true)
	return true
}

func (c controller) Memory() *epc.Memory { return c.s.host.table }
func (c controller) BARMemory(bar int) []byte {
	if m := c.s.bars[bar]; m != nil {
		return m.Bytes()
	}
	return nil
}
func (c controller) MSIXEnabled() bool { return c.s.pins.msixEnabled() }
func (c controller) RaiseMSIX(vector uint16) error {
	if e := c.s.host.engine; e != nil {
		e.interrupt()
	}
	return c.s.pins.raise(vector)
}
func (c controller) SetINTx(asserted bool) error { return c.s.pins.drive(asserted) }

// movingController is that of a slot with a DMA engine.
type movingController struct{ controller }

var _ epc.Moving = movingController{}

func (c movingController) NewMover(depth int, memory []byte, bell int) (epc.Mover, error) {
	return c.s.host.engine.newMover(depth, memory, bell), nil
}
