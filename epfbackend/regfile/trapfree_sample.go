package regfile

import (
	"encoding/binary"
	"fmt"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// Sample looks at the registers once and acts on what it finds: it stops what was
// reset, and starts what was set up. It is to be called every so often when
// idle, whenever Live has said no, and whenever a stop has ended. It neither
// waits nor allocates, except where something is started.
//
// The error, which wraps ErrSetUp, says once for each such set-up why it is not
// started and what to do about it; the driver sees DEVICE_NEEDS_RESET.
func (t *TrapFree) Sample() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sampleConfig()
	t.storeGeneration()
	if a := t.now.Load(); a != nil {
		if t.holds(a) {
			if a.broken {
				t.showNeedsReset(a)
			}
			return nil
		}
		t.retire(a)
	}
	if t.stopping != nil && ended(t.stopping) {
		t.stopping = nil
	}
	status := statusOf(t.cfg.Common.Load32(statusWord))
	if t.cfg.Queues > 1 && settingUp(status) {
		t.capture()
		return nil
	}
	t.clearEnable()
	if !running(status) {
		t.captures = captures{}
		return nil
	}
	if t.stopping != nil {
		return nil
	}
	return t.activate()
}

// retire ends an activation. It is taken back before anything else can be seen
// to start, so that Live has said no by then.
func (t *TrapFree) retire(a *activation) {
	t.now.Store(nil)
	if a.refused {
		return
	}
	t.stats.Resets++
	if running(statusOf(t.cfg.Common.Load32(statusWord))) {
		t.stats.MissedResets++
	}
	t.stopping = t.h.Stop()
}

// clearEnable puts queue_enable back to 0 and says whether it was not.
func (t *TrapFree) clearEnable() (was bool) {
	w := t.cfg.Common.Load32(enableWord)
	if uint16(w) == 0 {
		return false
	}
	t.cfg.Common.CompareAndSwap32(enableWord, w, w&^0xffff)
	return true
}

// activate captures what stands in the registers and starts it. If anything is
// not as it was when it is looked at once more, the next sample sees more.
func (t *TrapFree) activate() error {
	a := &activation{}
	sel := int(t.cfg.Common.Load32(statusWord) >> 16)
	vector := t.read(&a.standing)
	if t.newSetUp() {
		t.captures = captures{}
	}
	if !t.holds(a) || t.cfg.Settled != nil && !t.cfg.Settled() {
		return nil
	}
	err := t.collect(a, sel, vector)
	t.unmark()
	t.captures = captures{}
	t.epoch++
	a.epoch, a.refused = t.epoch, err != nil
	t.now.Store(a)
	if err != nil {
		t.stats.Refused++
		a.broken = true
		t.showNeedsReset(a)
		return err
	}
	t.stats.Activations++
	for i, q := range a.queues {
		t.h.StartQueue(i, q)
	}
	return nil
}

// read looks at the registers of the selected queue.
func (t *TrapFree) read(s *standing) (vector uint16) {
	w := t.cfg.Common.Load32(sizeWord)
	s.size, vector = uint16(w), uint16(w>>16)
	for i := range s.addresses {
		s.addresses[i] = t.cfg.Common.Load32(virtiopci.QueueDesc + 4*i)
	}
	return vector
}

// checkSize says whether a queue's size is one that was offered.
func (t *TrapFree) checkSize(i int, size int) error {
	if size < 1 || size > t.cfg.QueueSize {
		return fmt.Errorf("%w: queue %d of size %d, but 1 to %d are possible; unbind the driver and bind it again",
			ErrSetUp, i, size, t.cfg.QueueSize)
	}
	return nil
}

// persistence bounds how often a compare-and-swap is tried that a driver may
// spoil, on purpose or not.
const persistence = 16

// NeedsReset sets DEVICE_NEEDS_RESET (virtio 1.4 §2.1.2). It says whether a
// driver is there to be told.
func (t *TrapFree) NeedsReset() (live bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.now.Load()
	if a == nil || !t.holds(a) {
		return false
	}
	a.broken = true
	return t.showNeedsReset(a)
}

// showNeedsReset sets DEVICE_NEEDS_RESET, at the next sample if the driver keeps
// writing to the word. The swap may hit a driver that came after a and whose
// status is the same by then; queue_enable tells so, because it
// was written before that status was, and the bit, which nobody else sets, is
// taken back.
func (t *TrapFree) showNeedsReset(a *activation) (shown bool) {
	m := t.cfg.Common
	for range persistence {
		w := m.Load32(statusWord)
		if !running(statusOf(w)) {
			return false
		}
		if statusOf(w).Has(virtio.NeedsReset) {
			return true
		}
		if m.CompareAndSwap32(statusWord, w, w|uint32(virtio.NeedsReset)) {
			if t.holds(a) {
				return true
			}
			t.hideNeedsReset()
			return false
		}
	}
	return false
}

func (t *TrapFree) hideNeedsReset() {
	m := t.cfg.Common
	for range persistence {
		w := m.Load32(statusWord)
		if !statusOf(w).Has(virtio.NeedsReset) || m.CompareAndSwap32(statusWord, w, w&^uint32(virtio.NeedsReset)) {
			return
		}
	}
}

// UpdateDeviceConfig lets change edit the device-specific configuration and
// counts the generation up. It says whether a driver is there to be told. What
// is in a word with a byte of the driver's cannot be changed.
//
// A driver compares the generation before with that after its reads. It is
// counted up before the fields change and again after, so that only reads which
// begin and end between two of our stores mix old and new; the interrupt that
// the caller sends then makes the driver read again.
func (t *TrapFree) UpdateDeviceConfig(change func(config []byte)) (live bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := make([]uint32, len(t.config)/4)
	for i := range before {
		before[i] = binary.LittleEndian.Uint32(t.config[4*i:])
	}
	change(t.config[:len(t.cfg.DeviceConfig)])
	t.countGeneration()
	for i, was := range before {
		if now := binary.LittleEndian.Uint32(t.config[4*i:]); now != was && !t.driverWord(4*i) {
			t.cfg.Device.Store32(4*i, now)
		}
	}
	t.countGeneration()
	// A driver that is ready but not sampled yet has read the old values.
	return running(statusOf(t.cfg.Common.Load32(statusWord)))
}

func (t *TrapFree) countGeneration() {
	t.generation++
	t.owed = true
	t.storeGeneration()
}

// storeGeneration stores the generation, at the next sample if the driver keeps
// writing to the word.
func (t *TrapFree) storeGeneration() {
	m := t.cfg.Common
	for range persistence {
		if !t.owed {
			return
		}
		w := m.Load32(statusWord)
		t.owed = !m.CompareAndSwap32(statusWord, w, w&^0xff00|uint32(t.generation)<<8)
	}
}

// driverWord says whether the word at off holds a byte that a driver may write.
func (t *TrapFree) driverWord(off int) bool {
	for _, b := range t.cfg.DriverBytes {
		if b&^3 == off {
			return true
		}
	}
	return false
}

// sampleConfig looks whether the driver wrote to the device configuration.
func (t *TrapFree) sampleConfig() {
	for i, off := range t.cfg.DriverBytes {
		t.driverWrote(i, byte(t.cfg.Device.Load32(off&^3)>>(off&3*8)))
	}
}

func (t *TrapFree) driverWrote(i int, v byte) {
	if v == t.seen[i] {
		return
	}
	t.seen[i] = v
	t.h.WriteConfig(t.config[:len(t.cfg.DeviceConfig)], t.cfg.DriverBytes[i], t.seen[i:i+1])
}
