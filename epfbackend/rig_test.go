package epfbackend_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser/leaktest"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// everything is a driver that accepts what it is offered.
var everything = virtio.Features{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}

const (
	sector   = virtioblk.SectorSize
	diskSize = 8 << 20
	patience = 30 * time.Second
)

// setup says what a rig is made of. The zero value is a file, served to a driver
// that accepts everything and has one queue with MSI-X.
type setup struct {
	path    string // of the disk; empty: a fresh file of diskSize
	open    disk.Options
	wrap    func(disk.Store) disk.Store
	options epfbackend.Options
	faults  *loopback.Faults
	link    *loopback.Link // host memory is reached by DMA over it
	memory  []vringtest.Range
	refuse  []virtio.Feature // what the driver does not accept
	queue   rc.QueueConfig
	intx    bool // instead of MSI-X
	polled  bool // no interrupts at all
}

// rig is a disk, exported through a slot, with a driver at the other end.
type rig struct {
	setup
	t      testing.TB
	store  disk.Store
	fn     *epfbackend.Function
	slot   *loopback.Slot
	engine *loopback.Engine
	mem    *vringtest.Memory
	dev    *rc.Device
	q      *rc.Queue
	log    *logBuffer
	closed bool
}

// newRig makes everything up to a driver that is ready, with queue s.queue.
func newRig(t testing.TB, s setup) *rig {
	t.Helper()
	r := newSlot(t, s)
	r.start()
	return r
}

// newSlot makes everything up to a device that was enumerated.
func newSlot(t testing.TB, s setup) *rig {
	t.Helper()
	if _, fuzz := t.(*testing.F); !fuzz { // the fuzzing engine starts goroutines of its own
		leaktest.Check(t)
	}
	r := &rig{setup: s, t: t, log: new(logBuffer)}
	if r.path == "" {
		r.path = newFile(t, diskSize)
	}
	log := slog.New(slog.NewTextHandler(r.log, nil))
	r.open.Log, r.options.Log = log, log
	var err error
	r.store, err = disk.Open(r.path, r.open)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.store.Close()) })
	if r.wrap != nil {
		r.store = r.wrap(r.store)
	}
	r.fn, err = epfbackend.New(r.store, r.options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.fn.Close()) })

	if r.memory == nil {
		r.memory = []vringtest.Range{{Base: 0x10_0000, Size: 64 << 20}}
	}
	r.mem, err = vringtest.NewMemory(r.memory...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.mem.Close()) })
	r.plug()
	t.Cleanup(func() {
		r.unplug()
		if t.Failed() {
			t.Logf("log:\n%s", r.log)
		}
	})
	return r
}

// plug puts the function in a slot and enumerates it.
func (r *rig) plug() {
	r.t.Helper()
	var err error
	if r.link == nil {
		r.slot, err = loopback.Plug(r.fn, r.faults)
	} else {
		clock := loopback.NewClock()
		clock.Run()
		r.t.Cleanup(clock.Stop)
		r.engine = loopback.NewEngine(clock, *r.link)
		r.slot, err = loopback.PlugEngine(r.fn, r.faults, r.engine)
	}
	require.NoError(r.t, err)
	r.closed = false
	require.NoError(r.t, rc.MapMemory(r.slot, r.mem))
	r.dev, err = rc.Open(r.slot)
	require.NoError(r.t, err)
}

func (r *rig) unplug() {
	if r.closed {
		return
	}
	r.closed = true
	require.NoError(r.t, r.slot.Unplug())
	require.NoError(r.t, r.dev.Close())
}

// start brings the driver up with queue r.queue.
func (r *rig) start() {
	r.t.Helper()
	r.negotiate()
	r.q = r.newQueue(r.queue)
	require.NoError(r.t, r.dev.Start())
}

// negotiate goes as far as FEATURES_OK and chooses interrupts.
func (r *rig) negotiate() {
	r.t.Helper()
	require.NoError(r.t, r.dev.Negotiate(everything.Without(r.refuse...)))
	switch {
	case r.intx:
		require.NoError(r.t, r.dev.UseINTx())
	case !r.polled:
		require.NoError(r.t, r.dev.UseMSIX(r.dev.MSIX.Vectors))
		require.NoError(r.t, r.dev.Write(virtiopci.ConfigMSIXVector, 2, 0))
	}
}

// newQueue enables a queue, with the vector that is its own if there are vectors.
func (r *rig) newQueue(c rc.QueueConfig) *rc.Queue {
	r.t.Helper()
	if c.Vector = virtiopci.NoVector; !r.intx && !r.polled {
		c.Vector = uint16(c.Index + 1)
	}
	q, err := rc.NewQueue(r.dev, r.mem, c)
	require.NoError(r.t, err)
	return q
}

func (r *rig) request(size int) *rc.Request {
	r.t.Helper()
	q, err := r.q.NewRequest(size)
	require.NoError(r.t, err)
	return q
}

// do executes one request with n bytes of data, and returns it.
func (r *rig) do(kind virtioblk.RequestType, at uint64, data []byte) *rc.Request {
	r.t.Helper()
	q := r.request(len(data))
	q.Type, q.Sector = kind, at
	copy(q.Data(), data)
	_, err := r.q.Do(q)
	require.NoError(r.t, err)
	return q
}

// must is do for a request that has to succeed. It returns the data.
func (r *rig) must(kind virtioblk.RequestType, at uint64, data []byte) []byte {
	r.t.Helper()
	q := r.do(kind, at, data)
	require.Equal(r.t, virtioblk.StatusOK, q.Status)
	return q.Data()
}

// fails is do for a request that has to fail, and says how.
func (r *rig) fails(want virtioblk.Status, kind virtioblk.RequestType, at uint64, data []byte) {
	r.t.Helper()
	q := r.do(kind, at, data)
	require.Equal(r.t, want, q.Status)
	require.LessOrEqual(r.t, q.Written, uint32(1), "nothing but the status was written")
	r.alive()
}

// alive makes sure that the device still serves requests.
func (r *rig) alive() {
	r.t.Helper()
	r.must(virtioblk.TypeIn, 0, make([]byte, sector))
	s, err := r.dev.Status()
	require.NoError(r.t, err)
	require.False(r.t, s.Has(virtio.NeedsReset))
}

// broken waits until the device says that it needs a reset.
func (r *rig) broken() {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		s, err := r.dev.Status()
		return err == nil && s.Has(virtio.NeedsReset)
	}, patience, time.Millisecond)
	if !r.polled {
		require.True(r.t, r.configInterrupt(patience), "no configuration interrupt")
	}
}

// configInterrupt waits for a configuration interrupt and says whether one came. The
// pin may also tell of a request whose end was seen without it.
func (r *rig) configInterrupt(timeout time.Duration) bool {
	r.t.Helper()
	for end := time.Now().Add(timeout); ; {
		came, isr, err := r.dev.AwaitInterrupt(0, max(0, time.Until(end)))
		require.NoError(r.t, err)
		if !came || !r.intx || isr&virtiopci.ISRConfig != 0 {
			return came
		}
		require.EqualValues(r.t, virtiopci.ISRQueue, isr)
	}
}

// revive resets a device and makes sure that it works again.
func (r *rig) revive() {
	r.t.Helper()
	r.start()
	r.alive()
}

// onDisk returns n bytes of the disk as others see them.
func (r *rig) onDisk(off int64, n int) []byte {
	r.t.Helper()
	f, err := os.Open(r.path)
	require.NoError(r.t, err)
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, off)
	require.NoError(r.t, err)
	return b
}

func newFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())
	return path
}

// pattern returns n bytes that tell where they belong.
func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = seed + byte(i) + byte(i>>8)*3 + byte(i>>16)*5
	}
	return b
}

// engines runs a test on each engine.
func engines(t *testing.T, test func(t *testing.T, o epfbackend.Options)) {
	for _, kind := range []disk.EngineKind{disk.URing, disk.Plain} {
		t.Run(kind.String(), func(t *testing.T) { test(t, epfbackend.Options{Engine: kind}) })
	}
}

// logBuffer collects a log from several goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
