package epfbackend

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-multierror"

	"github.com/vblk-ep/vblk-ep/doorbell"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// detachPatience bounds how long Detach waits for what is in flight.
const detachPatience = 2 * time.Second

// Function is one disk as one PCI function. It implements epc.Function for its
// controller, and regfile.Handler for its register file.
type Function struct {
	store   disk.Store
	opts    Options
	log     *slog.Logger
	layout  layout
	desc    epc.Description
	offered virtio.Features
	mirror  regfile.Mirror    // trap-free only
	bells   []doorbell.Source // one a queue
	trapped *regfile.Trapped  // regs, if accesses are seen
	sampler *sampler          // trap-free, while attached
	config  shm.Window        // trap-free, while attached: the device configuration in the BAR
	wakeup  doorbell.Source   // wakes the sampler

	info     disk.Info // as it was at New; only the size ever changes
	readOnly bool
	serial   [virtioblk.IDLen]byte
	lifetime []byte // the answer to GET_LIFETIME; nil if the disk has none

	size      atomic.Int64 // of the disk, in bytes
	writeback atomic.Bool  // completed writes may still be in a volatile cache
	flushes   atomic.Bool  // the driver has asked for a flush since it was activated

	mu       sync.Mutex
	ctl      epc.Controller // nil while detached
	regs     registers      // nil while a trap-free function is detached
	accepted virtio.Features
	news     limiter   // of what is accepted
	workers  []*worker // by queue; nil where none runs
	ending   []*worker // asked to stop; perhaps still using host memory
	paused   bool
	record   *record       // nil: nobody can go on after us
	resume   []servedQueue // what is being taken over from another function

	refreshing sync.Mutex     // regs stays while it is held; taken before mu
	background sync.WaitGroup // cache flushes, and who waits for workers to end
	flushing   sync.Mutex     // one at a time
	flushOwed  atomic.Bool    // one is to start
}

var (
	_ epc.Function    = (*Function)(nil)
	_ epc.Rung        = (*Function)(nil)
	_ regfile.Handler = (*Function)(nil)
)

// New returns the function that exports store. The store stays the caller's,
// who closes it after Close.
func New(store disk.Store, o Options) (*Function, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	o.setDefaults()
	info := store.Info()
	f := &Function{
		store: store, opts: o, log: o.Log,
		info: info, readOnly: info.ReadOnly,
	}
	f.size.Store(info.Size)
	f.writeback.Store(!o.WriteThrough)
	f.workers = make([]*worker, o.Queues)
	if o.Serial == "" {
		o.Serial = info.Serial
	}
	copy(f.serial[:], o.Serial)
	if info.Lifetime != nil {
		f.lifetime = make([]byte, virtioblk.LifetimeLen)
		virtioblk.Lifetime(*info.Lifetime).Encode(f.lifetime)
	}

	if err := f.offer(); err != nil {
		return nil, err
	}
	var err error
	if f.layout, err = newLayout(&o); err != nil {
		return nil, err
	}
	f.desc = f.layout.describe(&o)
	if !o.TrapFree {
		f.trapped = f.newTrapped()
		f.regs = f.trapped
	}
	for range o.Queues + 1 {
		bell, err := doorbell.NewTrapped()
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		f.bells = append(f.bells, bell)
	}
	f.bells, f.wakeup = f.bells[:o.Queues], f.bells[o.Queues]
	return f, nil
}

// Close releases what New made. The function must be detached.
func (f *Function) Close() error {
	var errs *multierror.Error
	for _, b := range f.bells {
		errs = multierror.Append(errs, b.Close())
	}
	if f.wakeup != nil {
		errs = multierror.Append(errs, f.wakeup.Close())
	}
	f.bells, f.wakeup = nil, nil
	return errs.ErrorOrNil()
}

// Features returns the feature bits that are offered to the driver.
func (f *Function) Features() virtio.Features { return f.offered }

// Lost says which features would be offered if the registers were trapped, and
// why they are not.
func (f *Function) Lost() []regfile.Loss { return f.mirror.Lost }

// Active says whether a driver's queues are being served.
func (f *Function) Active() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.workers, func(w *worker) bool { return w != nil })
}

// Describe implements epc.Function.
func (f *Function) Describe() epc.Description { return f.desc }

// Doorbells implements epc.Rung.
func (f *Function) Doorbells() []int {
	fds := make([]int, len(f.bells))
	for i, b := range f.bells {
		fds[i] = b.FD()
	}
	return fds
}

// ReadBAR implements epc.Function. What is not a register reads 0.
func (f *Function) ReadBAR(bar int, off uint64, p []byte) {
	clear(p)
	if bar != registerBAR || f.trapped == nil {
		return
	}
	at := off % structSize
	switch off - at {
	case commonOffset:
		f.trapped.ReadCommon(at, p)
	case isrOffset:
		f.trapped.ReadISR(at, p)
	case deviceOffset:
		f.trapped.ReadDevice(at, p)
	}
}

// WriteBAR implements epc.Function. A write to what is not a register is
// dropped.
func (f *Function) WriteBAR(bar int, off uint64, p []byte) {
	if bar != registerBAR || f.trapped == nil {
		return
	}
	at := off % structSize
	switch off - at {
	case commonOffset:
		f.trapped.WriteCommon(at, p)
	case deviceOffset:
		f.trapped.WriteDevice(at, p)
	case notifyOffset:
		f.trapped.Notify(int(at / notifyMultiplier))
	}
}

// Attach implements epc.Function.
func (f *Function) Attach(c epc.Controller) {
	f.mu.Lock()
	f.ctl, f.record, f.paused = c, f.newRecord(c), false
	f.record.begin()
	f.mu.Unlock()
	if f.opts.TrapFree {
		f.attachTrapFree(c)
	}
}

// Detach implements epc.Function. What uses host memory at the moment ends first, if that
// does not take long. A request whose data goes through buffers of ours may be left half
// done, as by a reset; its driver was not told that it is done.
func (f *Function) Detach() error {
	if f.sampler != nil {
		f.sampler.stop()
		f.sampler = nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), detachPatience)
	defer cancel()
	if err := f.Pause(ctx); err != nil {
		f.log.Warn("detached with requests in flight", "err", err)
	}
	var errs *multierror.Error
	errs = multierror.Append(errs, f.Reset(context.Background()))
	f.background.Wait()
	if !f.readOnly {
		if err := f.store.Flush(); err != nil {
			errs = multierror.Append(errs, fmt.Errorf("flush the disk: %w", err))
		}
	}
	f.refreshing.Lock()
	defer f.refreshing.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ctl, f.record = nil, nil
	if f.opts.TrapFree {
		f.regs = nil // the memory was the controller's
	}
	return errs.ErrorOrNil()
}

// Reset implements epc.Function.
func (f *Function) Reset(ctx context.Context) error {
	if f.sampler != nil {
		f.sampler.reset.Store(true)
	}
	if err := f.regs.Reset(ctx); err != nil {
		return fmt.Errorf("reset: requests are still in flight: %w", err)
	}
	return nil
}

// HostGone implements epc.Function.
func (f *Function) HostGone(ctx context.Context) error {
	regs, ok := f.regs.(*regfile.TrapFree)
	if !ok {
		return f.Reset(ctx)
	}
	f.sampler.reset.Store(true)
	if err := regs.HostGone(ctx); err != nil {
		return fmt.Errorf("the host is gone: requests are still in flight: %w", err)
	}
	return nil
}

// Pause implements epc.Function.
func (f *Function) Pause(ctx context.Context) error { return f.rest(ctx, paused) }

// rest brings all workers to paused or drained.
func (f *Function) rest(ctx context.Context, at phase) error {
	f.mu.Lock()
	f.paused = true
	workers := f.live()
	f.mu.Unlock()
	for _, w := range workers {
		w.ask(at)
	}
	for _, w := range workers {
		if err := w.gate.await(ctx, at); err != nil {
			return fmt.Errorf("pause queue %d: requests are still in flight: %w", w.index, err)
		}
	}
	return nil
}

// Resume implements epc.Function.
func (f *Function) Resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = false
	for _, w := range f.live() {
		w.ask(running)
	}
}

// live returns the workers that may use host memory. The caller holds f.mu.
func (f *Function) live() []*worker {
	live := slices.Clone(f.ending)
	for _, w := range f.workers {
		if w != nil {
			live = append(live, w)
		}
	}
	return live
}

// Refresh looks whether the disk has changed its size, and tells the driver.
func (f *Function) Refresh() error {
	changed, err := f.store.Refresh()
	if err != nil || !changed {
		return err
	}
	size := f.store.Info().Size
	f.size.Store(size)
	f.log.Info("the disk has a new size", "bytes", size)
	f.tellSize(size)
	return nil
}

// tellSize tells the driver, if there is one, how large the disk is.
func (f *Function) tellSize(size int64) {
	f.refreshing.Lock()
	defer f.refreshing.Unlock()
	if f.regs == nil {
		return // who attaches finds the new size
	}
	live := f.regs.UpdateDeviceConfig(func(config []byte) {
		binary.LittleEndian.PutUint64(config[virtioblk.CfgCapacity:], uint64(size)/virtioblk.SectorSize)
	})
	if live {
		f.interruptConfig()
	}
}

// fail reports that the device cannot go on (virtio 1.4 §2.1.2). It must not be
// called with f.mu or the register file locked.
func (f *Function) fail(err error) {
	f.log.Error("the device needs a reset", "err", err)
	if f.regs.NeedsReset() {
		f.interruptConfig()
	}
}

// Options returns the options in force, defaults filled in.
func (f *Function) Options() Options { return f.opts }

// Serial returns what GET_ID answers.
func (f *Function) Serial() string { return string(bytes.TrimRight(f.serial[:], "\x00")) }
