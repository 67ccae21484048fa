package regfile

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// Memory is memory that the host reads and writes while we do. Offsets are in
// bytes and multiples of 4, values little-endian. Each access is atomic and
// ordered with those before and after it; CompareAndSwap32 is atomic towards the
// host's accesses of 8 and 16 bits too.
type Memory interface {
	Load32(off int) uint32
	Store32(off int, v uint32)
	CompareAndSwap32(off int, old, new uint32) bool
}

// Activator is the part of a Handler that a trap-free register file needs. What
// it lacks has no place there: which features were accepted is never known,
// queues are not reset one by one, doorbells do not pass through the registers,
// there is no interrupt pin, and a reset leaves the device configuration alone.
// Its methods are called as a Handler's are.
type Activator interface {
	// StartQueue: queue i is to be served. The accepted features are unknown.
	// Epoch, called from here, identifies the activation for Live.
	StartQueue(i int, q Queue)

	// Stop: as in Handler. Live is false already.
	Stop() (done <-chan struct{})

	// WriteConfig: the driver wrote p at off, inside the device configuration,
	// at some time since the last sample. config is the device's own copy.
	WriteConfig(config []byte, off int, p []byte)
}

var _ Activator = Handler(nil)

// TrapFreeConfig describes a trap-free register file.
type TrapFreeConfig struct {
	Word         uint32 // what device_feature holds: Mirror.Word
	Queues       int    // number of virtqueues, 1 to 65535
	QueueSize    int    // largest size of each, a power of two
	Vectors      int    // MSI-X vectors that the driver may assign
	DeviceConfig []byte // device-specific configuration at reset
	DriverBytes  []int  // offsets in DeviceConfig of the bytes that a driver may write

	// The memory of the structures in the BAR, each from its first byte: 64
	// bytes, 4 bytes, and DeviceConfig's length rounded up to 4.
	Common, ISR, Device Memory

	// Settled says whether all that has happened to the host's end has been told, by
	// Reset or HostGone. While it says no nothing is started, so that what runs when it is
	// told is of before. nil: always.
	Settled func() bool
}

// TrapFree is the register file of a controller that sees no access: the
// registers are memory, which the driver reads and writes unbeknown to us. It is
// a state machine that moves when it is sampled. What it goes by:
//
//   - Status has DRIVER_OK and nothing runs: what stands in the registers is an
//     activation, because a driver sets DRIVER_OK after everything else. It is
//     captured by value, and started only if all of it is read a second time.
//   - A queue runs, and status has lost DRIVER_OK, or size or addresses have
//     changed, or queue_enable is set once more: there was a reset, whether its 0
//     was seen or not.
//
// queue_enable is no evidence of an activation: the 1 that is seen may be gone,
// and another driver's there, when it is put back to 0.
//
// After the image it stores to these places only, and undoes nothing that a
// driver does at the same moment:
//
//   - queue_enable, back to 0 by compare-and-swap whenever nothing runs: a driver
//     refuses a queue that is enabled before it has enabled it. Should that hit
//     the next driver's 1, nothing is lost: its DRIVER_OK is evidence enough.
//   - DEVICE_NEEDS_RESET in the status, by compare-and-swap of a status that has
//     DRIVER_OK, and 0 there in place of such a status: see Disown and HostGone.
//   - config_generation, by compare-and-swap, and the fields of the device
//     configuration that changed.
//   - driver_feature_select and config_msix_vector, while a driver sets up several
//     queues: see captures.
//
// Nothing is put back to its value at reset. A driver may have read it already:
// queue_size, for one, that a driver made smaller stays so for the next.
//
// What memory cannot tell, and what closes it:
//
//   - A driver that finds queue_enable set gives up. So between one driver's
//     queue_enable and the next driver's look at it, one sample must begin and
//     end. Nothing written later could help: the read is answered by then.
//   - A reset and a set-up of the same rings, both between our last look at an
//     activation and its start. It is started once, for the later of the two, and
//     nothing of the earlier was served: there is nothing to confuse.
//   - A reset after Live said yes. Live is true of an instant between its call
//     and its return; what the caller does then is late by the time it takes.
//     This, not the registers, bounds what a driver may see after its reset.
//   - A driver that sets up the same rings again and is sampled only then is told
//     from one that did nothing by queue_enable alone. Were a driver to take that
//     back itself before it is sampled, only the rings could tell: their indices,
//     and the packed ring's wrap counters, start again.
//
// Methods may be called from any goroutine.
type TrapFree struct {
	cfg TrapFreeConfig
	h   Activator

	now atomic.Pointer[activation] // what runs; nil if nothing does

	mu         sync.Mutex
	epoch      uint64          // of the last activation
	stopping   <-chan struct{} // not nil while a stop is under way
	captures   captures        // several queues only
	config     []byte          // device configuration as we wrote it
	seen       []byte          // its DriverBytes as they were last sampled
	generation uint8
	owed       bool // the generation is still to be stored
	stats      TrapFreeStats
}

// TrapFreeStats counts what a register file has seen.
type TrapFreeStats struct {
	Activations  uint64 // set-ups that were started
	Resets       uint64 // ends of those
	MissedResets uint64 // of these, seen only when the next driver was ready
	Captured     uint64 // queues of several that were captured before the next was set up
	Missed       uint64 // queues of several that were not
	Refused      uint64 // set-ups that were not started
}

// standing is what one look at the registers of a queue returns.
type standing struct {
	size      uint16
	addresses [6]uint32 // desc, driver, device; low half first
}

func (s *standing) queue() Queue {
	at := func(i int) uint64 { return uint64(s.addresses[i]) | uint64(s.addresses[i+1])<<32 }
	return Queue{Size: int(s.size), Desc: at(0), Driver: at(2), Device: at(4)}
}

// stand is the opposite of queue.
func (s *standing) stand(q Queue) {
	s.size = uint16(q.Size)
	for i, v := range [...]uint64{q.Desc, q.Driver, q.Device} {
		s.addresses[2*i], s.addresses[2*i+1] = uint32(v), uint32(v>>32)
	}
}

// activation is a set-up that was captured. It does not change, except for
// broken, which Sample alone looks at.
type activation struct {
	standing // the registers at DRIVER_OK
	epoch    uint64
	queues   []Queue
	vectors  []uint16
	refused  bool // not started
	broken   bool // DEVICE_NEEDS_RESET is to be seen
}

// Where the words are that registers share.
const (
	statusWord = virtiopci.DeviceStatus &^ 3 // device_status, config_generation, queue_select
	sizeWord   = virtiopci.QueueSize         // queue_size, queue_msix_vector
	enableWord = virtiopci.QueueEnable       // queue_enable, queue_notify_off
	vectorWord = virtiopci.ConfigMSIXVector  // config_msix_vector, num_queues
)

// NewTrapFree returns a register file and writes its image. No host may be able
// to reach the memory yet.
func NewTrapFree(cfg TrapFreeConfig, h Activator) *TrapFree {
	t := newTrapFree(cfg, h)
	t.write()
	return t
}

func newTrapFree(cfg TrapFreeConfig, h Activator) *TrapFree {
	t := &TrapFree{cfg: cfg, h: h, config: slices.Clone(cfg.DeviceConfig)}
	for len(t.config)%4 != 0 {
		t.config = append(t.config, 0)
	}
	t.seen = make([]byte, len(cfg.DriverBytes))
	for i, off := range cfg.DriverBytes {
		t.seen[i] = t.config[off]
	}
	return t
}

// Running is what a driver has set up and is being served.
type Running struct {
	Queues  []Queue
	Vectors []uint16 // of each; with one queue it stands in the registers
}

// Running returns what runs; nothing if a driver has reset it or nobody is there.
func (t *TrapFree) Running() Running {
	a := t.now.Load()
	if a == nil || a.refused || !t.holds(a) {
		return Running{}
	}
	return Running{a.queues, a.vectors}
}

// AdoptTrapFree returns a register file for memory that another one has left as it
// was. What the driver has written to the device configuration counts as not seen
// yet. TakeOver comes next.
func AdoptTrapFree(cfg TrapFreeConfig, h Activator) *TrapFree {
	t := newTrapFree(cfg, h)
	for off := 0; off < len(t.config); off += 4 {
		binary.LittleEndian.PutUint32(t.config[off:], cfg.Device.Load32(off))
	}
	t.generation = uint8(cfg.Common.Load32(statusWord) >> 8)
	return t
}

// TakeOver starts what ran when the memory was left. If the driver has reset it
// meanwhile, the next sample sees so, by the same evidence as ever.
func (t *TrapFree) TakeOver(r Running) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(r.Queues) == 0 || len(r.Queues) > t.cfg.Queues || len(r.Vectors) != len(r.Queues) {
		return
	}
	t.epoch++
	a := &activation{epoch: t.epoch, queues: r.Queues, vectors: r.Vectors}
	a.stand(r.Queues[len(r.Queues)-1]) // the last one set up stands in the registers
	t.now.Store(a)
	t.stats.Activations++
	for i, q := range a.queues {
		t.h.StartQueue(i, q)
	}
}

// Disown is called before TakeOver, and then nothing is taken over, where the host's end
// may have gone since the memory was left. DRIVER_OK of a driver that was served then is
// taken back. Somebody who has set up the device since has left queue_enable set, which is
// put back only while nothing runs, and not while nobody is there.
func (t *TrapFree) Disown() {
	m := t.cfg.Common
	for range persistence {
		w := m.Load32(statusWord)
		if !running(statusOf(w)) || uint16(m.Load32(enableWord)) != 0 || m.CompareAndSwap32(statusWord, w, w&^0xff) {
			return
		}
	}
}

// Abandon ends what runs, and leaves the memory as it is for another register file.
// It returns when nothing runs any more.
func (t *TrapFree) Abandon() {
	t.mu.Lock()
	if a := t.now.Load(); a != nil {
		t.retire(a)
	}
	done := t.stopping
	t.mu.Unlock()
	if done != nil {
		<-done
	}
}

// write writes the whole image.
func (t *TrapFree) write() {
	var image [virtiopci.CommonCfgLen / 4]uint32
	image[virtiopci.DeviceFeature/4] = t.cfg.Word
	image[vectorWord/4] = virtiopci.NoVector | uint32(t.cfg.Queues)<<16
	image[statusWord/4] = uint32(t.generation) << 8
	image[sizeWord/4] = uint32(t.cfg.QueueSize) | virtiopci.NoVector<<16
	for i, v := range image {
		t.cfg.Common.Store32(4*i, v)
	}
	t.cfg.ISR.Store32(0, 0)
	for off := 0; off < len(t.config); off += 4 {
		t.cfg.Device.Store32(off, binary.LittleEndian.Uint32(t.config[off:]))
	}
}

// Epoch identifies the activation that runs, 0 if none does. It may be called
// from an Activator.
func (t *TrapFree) Epoch() uint64 {
	if a := t.now.Load(); a != nil {
		return a.epoch
	}
	return 0
}

// Live says whether the activation of an epoch is still what stands in the
// registers. Whoever serves a queue asks before touching host memory: nine loads
// and no lock. Whoever gets a no leaves host memory alone from then on and
// samples.
func (t *TrapFree) Live(epoch uint64) bool {
	a := t.now.Load()
	return a != nil && a.epoch == epoch && t.holds(a) && t.now.Load() == a
}

// holds says whether the registers hold a, and nobody has set it up again.
// queue_enable is looked at last: a set-up writes it after everything but the
// status.
func (t *TrapFree) holds(a *activation) bool {
	m := t.cfg.Common
	if !running(statusOf(m.Load32(statusWord))) || uint16(m.Load32(sizeWord)) != a.size {
		return false
	}
	for i, v := range a.addresses {
		if m.Load32(virtiopci.QueueDesc+4*i) != v {
			return false
		}
	}
	return uint16(m.Load32(enableWord)) == 0
}

func statusOf(w uint32) virtio.Status { return virtio.Status(w) }

func running(s virtio.Status) bool {
	return s.Has(virtio.FeaturesOK|virtio.DriverOK) && !s.Has(virtio.Failed)
}

func settingUp(s virtio.Status) bool {
	return s.Has(virtio.FeaturesOK) && s&(virtio.DriverOK|virtio.Failed) == 0
}

// Begun says whether a driver uses the device, however far it has come with it.
func (t *TrapFree) Begun() bool { return statusOf(t.cfg.Common.Load32(statusWord)) != 0 }

// SettingUp says whether a driver is setting up several queues right now, and if so
// how often it was seen to move. Sample should be called without a pause while it
// moves; but it may stay there for ever.
func (t *TrapFree) SettingUp() (moves uint64, ok bool) {
	if t.cfg.Queues == 1 || !settingUp(statusOf(t.cfg.Common.Load32(statusWord))) {
		return 0, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.captures.moves, true
}

// ConfigVector returns the vector of configuration changes, virtiopci.NoVector
// for none.
func (t *TrapFree) ConfigVector() uint16 {
	return t.vector(uint16(t.cfg.Common.Load32(vectorWord)))
}

// QueueVector returns the vector of queue i, virtiopci.NoVector for none.
func (t *TrapFree) QueueVector(i int) uint16 {
	if t.cfg.Queues == 1 {
		return t.vector(uint16(t.cfg.Common.Load32(sizeWord) >> 16))
	}
	if a := t.now.Load(); a != nil && i < len(a.vectors) {
		return t.vector(a.vectors[i])
	}
	return virtiopci.NoVector
}

func (t *TrapFree) vector(v uint16) uint16 {
	if int(v) < t.cfg.Vectors {
		return v
	}
	return virtiopci.NoVector
}

// RaiseISR does nothing: the ISR status cannot be cleared by being read, so it
// stays 0 and there is no interrupt pin.
func (t *TrapFree) RaiseISR(uint8) {}

// Stats returns the counters.
func (t *TrapFree) Stats() TrapFreeStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stats
}

// Reset resets the device from outside: the link went down, the function was
// reset or is being detached. The host must not be able to reach the memory,
// for the whole image is written. It returns when nothing runs any more, or with
// the error of ctx; the stop goes on then.
func (t *TrapFree) Reset(ctx context.Context) error {
	t.mu.Lock()
	if a := t.now.Load(); a != nil {
		t.retire(a)
	}
	t.captures = captures{}
	for i, off := range t.cfg.DriverBytes {
		t.driverWrote(i, t.cfg.DeviceConfig[off])
		t.config[off] = t.cfg.DeviceConfig[off]
	}
	t.write()
	done := t.stopping
	t.mu.Unlock()
	return await(ctx, done)
}

// HostGone is Reset where the end of the host is told late, and another may be there: what
// runs ends, and what a driver has written since then stays. What runs is of before, for
// Settled has said no since; where it still stands in the registers, its DRIVER_OK is taken
// back. A driver that was ready before, and not sampled, counts as one that came since.
func (t *TrapFree) HostGone(ctx context.Context) error {
	t.mu.Lock()
	if a := t.now.Load(); a != nil {
		t.retire(a)
		t.Disown()
	}
	done := t.stopping
	t.mu.Unlock()
	return await(ctx, done)
}

// await waits for the end of a stop, if there is one.
func await(ctx context.Context, done <-chan struct{}) error {
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ErrSetUp is the cause of Sample's errors: a driver is ready, but what it set up
// cannot be served.
var ErrSetUp = errors.New("the driver's set-up cannot be served")
