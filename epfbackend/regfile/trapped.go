package regfile

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// resetPatience bounds how long a write that begins a reset is held back. It
// stays well below the five seconds after which a VMM gives up on us.
const resetPatience = 2 * time.Second

// Config describes a register file.
type Config struct {
	Offered      virtio.Features
	Required     virtio.Features // of these, what a driver must accept; VERSION_1 in any case
	Queues       int             // number of virtqueues, 1 to 65535
	QueueSize    int             // largest size of each, a power of two
	Vectors      int             // MSI-X vectors that the driver may assign
	DeviceConfig []byte          // device-specific configuration at reset
	Log          *slog.Logger
}

type queueRegs struct {
	Queue
	enabled   bool
	resetting <-chan struct{} // not nil while a queue reset is under way
}

// Trapped is the register file of a controller that sees every access: reads
// are computed when they happen, writes take effect at once. It may be used
// from any goroutine.
type Trapped struct {
	cfg Config
	h   Handler

	mu         sync.Mutex
	status     virtio.Status
	offerSel   uint32 // device_feature_select
	acceptSel  uint32 // driver_feature_select
	accepted   virtio.Features
	queueSel   uint16
	queues     []queueRegs
	generation uint8
	isr        uint8
	device     []byte
	resetting  <-chan struct{} // not nil while a device reset is under way

	// Interrupt vectors are read by workers on the data path.
	configVector atomic.Uint32
	queueVectors []atomic.Uint32
}

// NewTrapped returns a register file in its reset state.
func NewTrapped(cfg Config, h Handler) *Trapped {
	t := &Trapped{cfg: cfg, h: h, device: slices.Clone(cfg.DeviceConfig)}
	t.queues = make([]queueRegs, cfg.Queues)
	t.queueVectors = make([]atomic.Uint32, cfg.Queues)
	t.clear()
	return t
}

// clear puts every register to its value at reset. The device configuration
// and its generation survive: they are the disk's, not the driver's.
func (t *Trapped) clear() {
	t.status, t.accepted = 0, virtio.Features{}
	t.offerSel, t.acceptSel, t.queueSel, t.isr = 0, 0, 0, 0
	t.configVector.Store(virtiopci.NoVector)
	for i := range t.queues {
		t.clearQueue(i)
	}
}

func (t *Trapped) clearQueue(i int) {
	t.queues[i] = queueRegs{Queue: Queue{Size: t.cfg.QueueSize}}
	t.queueVectors[i].Store(virtiopci.NoVector)
}

// ConfigVector returns the vector of configuration changes, virtiopci.NoVector
// for none.
func (t *Trapped) ConfigVector() uint16 { return uint16(t.configVector.Load()) }

// QueueVector returns the vector of queue i, virtiopci.NoVector for none.
func (t *Trapped) QueueVector(i int) uint16 { return uint16(t.queueVectors[i].Load()) }

// check says whether a driver may have accepted f.
func (t *Trapped) check(f virtio.Features) error {
	for bit := range t.cfg.Required.Minus(f).All {
		return &virtio.FeatureError{Feature: bit, Reason: "not accepted, but the device was told to insist"}
	}
	return f.Validate(t.cfg.Offered)
}

// Epoch implements what the function needs of any register file. A driver waits
// for the end of a reset, so there is only one activation at a time.
func (t *Trapped) Epoch() uint64 { return 0 }

// Live implements what the function needs of any register file: a queue that has
// not been told to stop is wanted.
func (t *Trapped) Live(uint64) bool { return true }

// RaiseISR sets bits in the ISR status and asserts the interrupt pin (virtio 1.4
// §4.1.4.5). A device that is being reset does not interrupt.
func (t *Trapped) RaiseISR(bits uint8) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.settle(); t.resetting == nil {
		t.isr |= bits
		t.h.SetINTx(true)
	}
}

// UpdateDeviceConfig lets change edit the device-specific configuration and
// counts the generation up. It says whether a driver is there to be told.
func (t *Trapped) UpdateDeviceConfig(change func(config []byte)) (live bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle()
	change(t.device)
	t.generation++
	return t.resetting == nil && t.status.Has(virtio.DriverOK)
}

// NeedsReset sets DEVICE_NEEDS_RESET (virtio 1.4 §2.1.2). It says whether a
// driver is there to be told.
func (t *Trapped) NeedsReset() (live bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.settle(); t.status == 0 || t.resetting != nil {
		return false
	}
	t.status |= virtio.NeedsReset
	return t.status.Has(virtio.DriverOK)
}

// Reset resets the device as a write of 0 to the device status does. It returns
// when the reset is complete, or with the error of ctx; the reset goes on then.
func (t *Trapped) Reset(ctx context.Context) error {
	t.mu.Lock()
	t.settle()
	t.beginReset()
	done := t.resetting
	t.mu.Unlock()
	return t.await(ctx, done)
}

// await returns when done, the end of a reset, has come and been acted upon, or
// with the error of ctx.
func (t *Trapped) await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle()
	return nil
}

func (t *Trapped) beginReset() {
	if t.resetting == nil {
		t.resetting = t.h.Stop()
	}
}

// settle finishes what has come to its end since the last access: a device
// reset, or queue resets.
func (t *Trapped) settle() {
	if t.resetting != nil {
		if !ended(t.resetting) {
			return
		}
		t.resetting = nil
		t.clear()
		t.h.ResetConfig(t.device)
		t.h.SetINTx(false)
	}
	for i := range t.queues {
		if r := t.queues[i].resetting; r != nil && ended(r) {
			t.clearQueue(i)
		}
	}
}

func ended(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// ReadISR serves a read of the ISR status structure: reading clears it and
// releases the interrupt pin (virtio 1.4 §4.1.4.5).
func (t *Trapped) ReadISR(off uint64, p []byte) {
	clear(p)
	if off != 0 || len(p) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle()
	p[0], t.isr = t.isr, 0
	t.h.SetINTx(false)
}

// ReadDevice serves a read of the device-specific configuration; what lies
// behind its end reads 0.
func (t *Trapped) ReadDevice(off uint64, p []byte) {
	clear(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.settle(); off < uint64(len(t.device)) {
		copy(p, t.device[off:])
	}
}

// WriteDevice serves a write to the device-specific configuration.
func (t *Trapped) WriteDevice(off uint64, p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.settle(); t.resetting == nil && t.status.Has(virtio.FeaturesOK) && off < uint64(len(t.device)) {
		t.h.WriteConfig(t.device, int(off), p)
	}
}

// Notify serves a write to the notification structure of queue i. Writes for a
// queue that is not live are ignored.
func (t *Trapped) Notify(i int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i < len(t.queues) && t.queues[i].enabled && t.queues[i].resetting == nil &&
		t.status.Has(virtio.DriverOK) && t.resetting == nil {
		t.h.Notify(i)
	}
}

// ReadCommon serves a read of the common configuration structure, of any
// length and alignment.
func (t *Trapped) ReadCommon(off uint64, p []byte) {
	clear(p)
	if off >= virtiopci.CommonCfgLen {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle()
	var image [virtiopci.CommonCfgLen]byte
	t.render(image[:])
	copy(p, image[off:])
}

// render writes the common configuration as the driver would read it now.
func (t *Trapped) render(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[virtiopci.DeviceFeatureSelect:], t.offerSel)
	le.PutUint32(b[virtiopci.DeviceFeature:], t.cfg.Offered.Dword(t.offerSel))
	le.PutUint32(b[virtiopci.DriverFeatureSelect:], t.acceptSel)
	le.PutUint32(b[virtiopci.DriverFeature:], t.accepted.Dword(t.acceptSel))
	le.PutUint16(b[virtiopci.ConfigMSIXVector:], t.ConfigVector())
	le.PutUint16(b[virtiopci.NumQueues:], uint16(len(t.queues)))
	b[virtiopci.DeviceStatus] = uint8(t.status)
	b[virtiopci.ConfigGeneration] = t.generation
	le.PutUint16(b[virtiopci.QueueSelect:], t.queueSel)

	i := int(t.queueSel)
	if i >= len(t.queues) {
		// A queue that is not there has size 0 (§4.1.4.3.1).
		le.PutUint16(b[virtiopci.QueueMSIXVector:], virtiopci.NoVector)
		return
	}
	q := &t.queues[i]
	le.PutUint16(b[virtiopci.QueueSize:], uint16(q.Size))
	le.PutUint16(b[virtiopci.QueueMSIXVector:], t.QueueVector(i))
	le.PutUint16(b[virtiopci.QueueEnable:], flag(q.enabled))
	le.PutUint16(b[virtiopci.QueueNotifyOff:], t.queueSel)
	le.PutUint64(b[virtiopci.QueueDesc:], q.Desc)
	le.PutUint64(b[virtiopci.QueueDriver:], q.Driver)
	le.PutUint64(b[virtiopci.QueueDevice:], q.Device)
	le.PutUint16(b[virtiopci.QueueNotifConfigData:], t.queueSel)
	le.PutUint16(b[virtiopci.QueueReset:], flag(q.resetting != nil))
}

func flag(b bool) uint16 {
	if b {
		return 1
	}
	return 0
}

// WriteCommon serves a write to the common configuration structure. A write
// may cover several registers; one that covers a register in part is ignored,
// except for the halves of 64-bit addresses (§4.1.3.1).
//
// A write that begins a reset is held back for a while: drivers that do not poll
// for the end of the reset (firmware) find it done.
func (t *Trapped) WriteCommon(off uint64, p []byte) {
	t.mu.Lock()
	t.settle()
	before := t.resetting
	for len(p) > 0 {
		n := t.writeRegister(off, p)
		p, off = p[n:], off+uint64(n)
	}
	reset := t.resetting
	t.mu.Unlock()

	if reset == nil || before != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), resetPatience)
	defer cancel()
	if t.await(ctx, reset) != nil {
		t.cfg.Log.Warn("device reset is taking long: requests are still in flight")
	}
}

// writeRegister writes the register that starts at off and returns the number
// of bytes of p it took, 1 where no register starts or p does not fill it.
func (t *Trapped) writeRegister(off uint64, p []byte) int {
	le := binary.LittleEndian
	n := registerWidth(off)
	if n == 0 || n > len(p) {
		return 1
	}
	if t.resetting != nil {
		return n
	}
	q := &queueRegs{resetting: make(chan struct{})} // a queue that is not there takes no write
	if int(t.queueSel) < len(t.queues) {
		q = &t.queues[t.queueSel]
	}
	open := !q.enabled && q.resetting == nil
	switch off {
	case virtiopci.DeviceFeatureSelect:
		t.offerSel = le.Uint32(p)
	case virtiopci.DriverFeatureSelect:
		t.acceptSel = le.Uint32(p)
	case virtiopci.DriverFeature:
		if !t.status.Has(virtio.FeaturesOK) {
			t.accepted = t.accepted.WithDword(t.acceptSel, le.Uint32(p))
		}
	case virtiopci.ConfigMSIXVector:
		t.configVector.Store(t.vector(le.Uint16(p)))
	case virtiopci.DeviceStatus:
		t.writeStatus(virtio.Status(p[0]))
	case virtiopci.QueueSelect:
		t.queueSel = le.Uint16(p)
	case virtiopci.QueueSize:
		if size := le.Uint16(p); open && t.takesSize(size) {
			q.Size = int(size)
		}
	case virtiopci.QueueMSIXVector:
		if int(t.queueSel) < len(t.queues) {
			t.queueVectors[t.queueSel].Store(t.vector(le.Uint16(p)))
		}
	case virtiopci.QueueEnable:
		if open && le.Uint16(p) == 1 {
			t.enableQueue(int(t.queueSel))
		}
	case virtiopci.QueueReset:
		if q.enabled && q.resetting == nil && le.Uint16(p) == 1 && t.accepted.Has(virtio.RingReset) {
			t.resetQueue(int(t.queueSel))
		}
	default:
		if address := q.addressAt(off &^ 4); address != nil && open {
			shift := off & 4 * 8
			*address = *address&^(0xffffffff<<shift) | uint64(le.Uint32(p))<<shift
		}
	}
	return n
}

func (q *queueRegs) addressAt(off uint64) *uint64 {
	switch off {
	case virtiopci.QueueDesc:
		return &q.Desc
	case virtiopci.QueueDriver:
		return &q.Driver
	case virtiopci.QueueDevice:
		return &q.Device
	}
	return nil
}

// registerWidth returns the width in bytes of the register that starts at off,
// 0 if none does. The 64-bit addresses count as two of 32 bits.
func registerWidth(off uint64) int {
	for _, width := range [...]int{4, 2, 1} {
		if _, ok := virtiopci.RegisterAt(int(off), width); ok {
			return width
		}
	}
	return 0
}

// takesSize says whether a driver may make a queue this large: without RING_PACKED
// only a power of two (§4.1.4.3.2).
func (t *Trapped) takesSize(size uint16) bool {
	packed := t.status.Has(virtio.FeaturesOK) && t.accepted.Has(virtio.RingPacked)
	return size != 0 && int(size) <= t.cfg.QueueSize && (packed || bits.OnesCount16(size) == 1)
}

// vector returns v if such a vector exists; reading back NoVector tells the
// driver that it does not (§4.1.5.1.2).
func (t *Trapped) vector(v uint16) uint32 {
	if int(v) < t.cfg.Vectors {
		return uint32(v)
	}
	return virtiopci.NoVector
}

// writeStatus applies a driver's write to the device status (§2.1, §3.1.1).
func (t *Trapped) writeStatus(s virtio.Status) {
	if s == 0 {
		t.beginReset()
		return
	}
	if err := virtio.CheckTransition(t.status, s); err != nil {
		t.cfg.Log.Warn("device status write ignored", "err", err)
		return
	}
	s = s&^virtio.NeedsReset | t.status&virtio.NeedsReset // ours, not the driver's
	added := s &^ t.status
	if added.Has(virtio.FeaturesOK) {
		if err := t.check(t.accepted); err != nil {
			t.cfg.Log.Warn("the driver's features are refused", "err", err)
			s &^= virtio.FeaturesOK | virtio.DriverOK
			added = s &^ t.status
		}
	}
	t.status = s
	if added.Has(virtio.FeaturesOK) {
		t.h.Negotiated(t.accepted, t.device)
	}
	if added.Has(virtio.DriverOK) {
		for i := range t.queues {
			if t.queues[i].enabled {
				t.h.StartQueue(i, t.queues[i].Queue)
			}
		}
	}
}

func (t *Trapped) enableQueue(i int) {
	if !t.status.Has(virtio.FeaturesOK) {
		return
	}
	t.queues[i].enabled = true
	if t.status.Has(virtio.DriverOK) {
		t.h.StartQueue(i, t.queues[i].Queue)
	}
}

// resetQueue resets one queue (§4.1.4.3.2): queue_reset reads 1 until it is
// done, then both it and queue_enable read 0.
func (t *Trapped) resetQueue(i int) {
	q := &t.queues[i]
	if !t.status.Has(virtio.DriverOK) {
		t.clearQueue(i) // never started, so there is nothing to wait for
		return
	}
	q.resetting = t.h.StopQueue(i)
}
