package epfbackend

import (
	"context"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// registers is a register file, of either kind, as the function uses it.
type registers interface {
	// Epoch identifies the activation that a queue is started for, and Live says
	// whether it is still what the driver wants.
	Epoch() uint64
	Live(epoch uint64) bool

	ConfigVector() uint16
	QueueVector(i int) uint16
	RaiseISR(bits uint8)

	UpdateDeviceConfig(change func(config []byte)) (live bool)
	NeedsReset() (live bool)
	Reset(ctx context.Context) error
}

var (
	_ registers = (*regfile.Trapped)(nil)
	_ registers = (*regfile.TrapFree)(nil)
)

// newTrapped returns the register file of a function whose accesses are seen.
func (f *Function) newTrapped() *regfile.Trapped {
	var required virtio.Features
	if f.opts.Rings == RingPacked {
		required = virtio.NewFeatures(virtio.RingPacked)
	}
	return regfile.NewTrapped(regfile.Config{
		Offered: f.offered, Required: required,
		Queues: f.opts.Queues, QueueSize: f.opts.QueueSize,
		Vectors: f.desc.MSIX.Vectors, DeviceConfig: f.deviceConfig(), Log: f.log,
	}, f)
}

// trapFreeConfig describes the registers of a function in the memory of its BAR.
func (f *Function) trapFreeConfig(c epc.Controller) regfile.TrapFreeConfig {
	return regfile.TrapFreeConfig{
		Word: f.mirror.Word, Queues: f.opts.Queues, QueueSize: f.opts.QueueSize,
		Vectors: f.desc.MSIX.Vectors, DeviceConfig: f.deviceConfig(),
		DriverBytes: []int{virtioblk.CfgWriteback},
		Common:      window(c, f.layout.common, virtiopci.CommonCfgLen),
		ISR:         window(c, f.layout.isr, 4),
		Device:      window(c, f.layout.device, virtioblk.ConfigLen),
		Settled:     func() bool { return settled(c) },
	}
}

// settled says whether we have been told of all that has happened to the host's end.
func settled(c epc.Controller) bool {
	late, ok := c.(epc.Late)
	return !ok || late.Settled()
}

// window returns n bytes of the controller's BAR memory.
func window(c epc.Controller, at place, n int) shm.Window {
	return shm.Of(c.BARMemory(at.bar)).Slice(at.off, n)
}

// attachTrapFree begins to watch the BARs that the controller gave us, with registers
// as they are at reset.
func (f *Function) attachTrapFree(c epc.Controller) {
	f.watch(c, regfile.NewTrapFree(f.trapFreeConfig(c), f), regfile.Running{})
}

// watch begins to watch registers, and to serve what runs already.
func (f *Function) watch(c epc.Controller, regs *regfile.TrapFree, r regfile.Running) {
	f.refreshing.Lock()
	f.mu.Lock()
	f.regs = regs
	f.config = window(c, f.layout.device, virtioblk.ConfigLen)
	f.mu.Unlock()
	f.refreshing.Unlock()
	regs.TakeOver(r)
	f.mu.Lock()
	f.resume = nil // what is started from now on begins anew
	f.mu.Unlock()
	f.sampler = startSampler(f, regs, c)
	if size := f.size.Load(); f.toldSize() != size { // it has changed while nobody looked
		f.tellSize(size)
	}
}

// toldSize returns the size of the disk that stands in the registers.
func (f *Function) toldSize() int64 {
	sectors := uint64(f.config.Load32(virtioblk.CfgCapacity)) | uint64(f.config.Load32(virtioblk.CfgCapacity+4))<<32
	return int64(sectors * virtioblk.SectorSize)
}
