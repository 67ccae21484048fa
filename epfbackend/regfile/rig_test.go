package regfile_test

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

const (
	queues    = 3
	queueSize = 64
	vectors   = queues + 1
)

var offered = virtio.NewFeatures(virtio.Version1, virtio.RingReset, virtio.RingPacked, virtio.EventIdx, virtioblk.Flush, virtioblk.ConfigWCE)

// function is the other side of the register file: it notes what it is told, and
// ends resets when the test says so.
type function struct {
	t          testing.TB
	negotiated []virtio.Features
	live       map[int]regfile.Queue
	notified   []int
	intx       bool
	resets     int // of the configuration

	hold bool // resets end when finish is called

	mu    sync.Mutex
	under []chan struct{} // resets under way
}

func (f *function) Negotiated(accepted virtio.Features, config []byte) {
	f.negotiated = append(f.negotiated, accepted)
	config[1] = 0xaa
}

func (f *function) StartQueue(i int, q regfile.Queue) {
	if _, twice := f.live[i]; twice {
		f.t.Errorf("queue %d started twice", i)
	}
	f.live[i] = q
}

func (f *function) StopQueue(i int) <-chan struct{} {
	if _, live := f.live[i]; !live {
		f.t.Errorf("queue %d stopped, but does not run", i)
	}
	delete(f.live, i)
	return f.stop()
}

func (f *function) Stop() <-chan struct{} {
	clear(f.live)
	return f.stop()
}

func (f *function) stop() <-chan struct{} {
	done := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hold {
		f.under = append(f.under, done)
	} else {
		close(done)
	}
	return done
}

// finish ends the resets under way.
func (f *function) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.under {
		close(c)
	}
	f.under = nil
}

func (f *function) Notify(i int) { f.notified = append(f.notified, i) }

func (f *function) WriteConfig(config []byte, off int, p []byte) { copy(config[off:], p) }

func (f *function) ResetConfig(config []byte) {
	f.resets++
	copy(config, deviceConfig)
}

func (f *function) SetINTx(asserted bool) { f.intx = asserted }

var deviceConfig = []byte{10, 11, 12, 13, 14, 15, 16, 17}

// host is a driver that accesses the registers.
type host struct {
	t testing.TB
	*regfile.Trapped
	fn *function
}

func newHost(t testing.TB) *host {
	fn := &function{t: t, live: make(map[int]regfile.Queue)}
	return &host{t, regfile.NewTrapped(regfile.Config{
		Offered: offered, Queues: queues, QueueSize: queueSize, Vectors: vectors,
		DeviceConfig: deviceConfig, Log: slog.New(slog.DiscardHandler),
	}, fn), fn}
}

func (h *host) read(off, n int) uint64 {
	var b [8]byte
	h.ReadCommon(uint64(off), b[:n])
	return binary.LittleEndian.Uint64(b[:])
}

func (h *host) write(off, n int, v uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	h.WriteCommon(uint64(off), b[:n])
}

func (h *host) image() (b [virtiopci.CommonCfgLen]byte) {
	h.ReadCommon(0, b[:])
	return b
}

func (h *host) status() virtio.Status     { return virtio.Status(h.read(virtiopci.DeviceStatus, 1)) }
func (h *host) setStatus(s virtio.Status) { h.write(virtiopci.DeviceStatus, 1, uint64(s)) }
func (h *host) selectQueue(i int)         { h.write(virtiopci.QueueSelect, 2, uint64(i)) }
func (h *host) register(n string) (r reg) { return registerNamed(h.t, n) }
func (h *host) get(name string) uint64    { r := h.register(name); return h.read(r.Offset, r.Width) }
func (h *host) set(name string, v uint64) { r := h.register(name); h.write(r.Offset, r.Width, v) }
func (h *host) accept(f virtio.Features)  { h.acceptDwords(f, 0, 1) }
func (h *host) is(name string, want uint64) {
	h.t.Helper()
	require.Equal(h.t, want, h.get(name), name)
}

func (h *host) acceptDwords(f virtio.Features, sels ...uint32) {
	for _, sel := range sels {
		h.set("driver_feature_select", uint64(sel))
		h.set("driver_feature", uint64(f.Dword(sel)))
	}
}

const (
	known      = virtio.Acknowledge | virtio.Driver
	negotiated = known | virtio.FeaturesOK
	ready      = negotiated | virtio.DriverOK
)

// negotiate goes as far as FEATURES_OK.
func (h *host) negotiate() {
	h.t.Helper()
	h.setStatus(virtio.Acknowledge)
	h.setStatus(known)
	h.accept(offered)
	h.setStatus(negotiated)
	require.Equal(h.t, negotiated, h.status())
}

// enable programs queue i, with addresses that tell it apart, and enables it.
func (h *host) enable(i int) regfile.Queue {
	q := regfile.Queue{
		Size: queueSize >> i,
		Desc: 0x1111_0000_0000_1000 * uint64(i+1), Driver: 0x22_0000_2000 * uint64(i+1), Device: 0x3000 * uint64(i+1),
	}
	h.selectQueue(i)
	h.set("queue_size", uint64(q.Size))
	h.set("queue_desc", q.Desc)
	h.set("queue_driver", q.Driver)
	h.set("queue_device", q.Device)
	h.set("queue_enable", 1)
	return q
}

type reg = virtiopci.Register

func registerNamed(t testing.TB, name string) reg {
	for _, r := range virtiopci.Registers {
		if r.Name == name {
			return r
		}
	}
	require.FailNow(t, fmt.Sprintf("no register %s", name))
	return reg{}
}
