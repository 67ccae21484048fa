package regfile

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// bar is memory that a host and the endpoint use at the same time. The host's
// narrow accesses are single ones, as on a bus.
type bar []atomic.Uint32

func (b bar) Load32(off int) uint32                        { return b[off/4].Load() }
func (b bar) Store32(off int, v uint32)                    { b[off/4].Store(v) }
func (b bar) CompareAndSwap32(off int, old, v uint32) bool { return b[off/4].CompareAndSwap(old, v) }

func (b bar) read(off, width int) uint32 {
	return b.Load32(off&^3) >> (off & 3 * 8) & uint32(1<<(8*width)-1)
}

func (b bar) write(off, width int, v uint32) {
	mask := uint32(1<<(8*width)-1) << (off & 3 * 8)
	for {
		w := b.Load32(off &^ 3)
		if b.CompareAndSwap32(off&^3, w, w&^mask|v<<(off&3*8)) {
			return
		}
	}
}

// rig is a register file with the host's end of it.
type rig struct {
	*TrapFree
	common, isr, device bar

	mu      sync.Mutex
	running map[int]Queue
	epoch   uint64
	stops   []chan struct{}
	hold    bool // stops end when the test says so
	wrote   []byte
}

const writeback = virtioblk.CfgWriteback

func newRig(num int) *rig {
	r := &rig{
		common: make(bar, virtiopci.CommonCfgLen/4), isr: make(bar, 1), device: make(bar, virtioblk.ConfigLen/4),
		running: map[int]Queue{},
	}
	for i := range r.common {
		r.common[i].Store(0xdeadbeef)
	}
	r.isr[0].Store(0xff)
	config := make([]byte, virtioblk.ConfigLen-2)
	(&virtioblk.Config{Capacity: 1 << 33, Writeback: true, NumQueues: uint16(num)}).Encode(append(config, 0, 0)[:virtioblk.ConfigLen])
	config[0], config[4], config[writeback], config[writeback+2] = 7, 2, 1, byte(num)
	r.TrapFree = NewTrapFree(TrapFreeConfig{
		Word: 0x10006817, Queues: num, QueueSize: 256, Vectors: num + 1,
		DeviceConfig: config, DriverBytes: []int{writeback},
		Common: r.common, ISR: r.isr, Device: r.device,
	}, r)
	return r
}

func (r *rig) StartQueue(i int, q Queue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running[i], r.epoch = q, r.Epoch()
}

func (r *rig) Stop() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.running)
	done := make(chan struct{})
	if r.hold {
		r.stops = append(r.stops, done)
	} else {
		close(done)
	}
	return done
}

func (r *rig) WriteConfig(config []byte, off int, p []byte) {
	if off == writeback {
		config[off] = p[0] & 1
		r.wrote = append(r.wrote, p[0])
	}
}

// play takes a script's steps.
func (r *rig) play(t testing.TB, run func(s *script)) []Queue {
	s := newScript(r.cfg.Queues)
	s.size = r.common.read(virtiopci.QueueSize, 2)
	run(s)
	for _, st := range s.steps {
		if st.write {
			r.common.write(st.off, st.width, st.value)
		} else if got := r.common.read(st.off, st.width); got&st.only != st.value&st.only {
			t.Fatalf("%v reads %#x", st, got)
		}
		if _, ok := r.SettingUp(); ok {
			require.NoError(t, r.Sample())
		}
	}
	return s.now.queues
}

func TestTrapFreeImage(t *testing.T) {
	r := newRig(3)
	want := map[int]uint32{
		virtiopci.DeviceFeature: 0x10006817, virtiopci.ConfigMSIXVector: virtiopci.NoVector, virtiopci.NumQueues: 3,
		virtiopci.QueueSize: 256, virtiopci.QueueMSIXVector: virtiopci.NoVector,
	}
	for _, reg := range virtiopci.Registers {
		for off := reg.Offset; off < reg.End(); off += min(reg.Width, 4) {
			require.Equalf(t, want[off], r.common.read(off, min(reg.Width, 4)), "%s", reg.Name)
		}
	}
	require.Zero(t, r.isr.read(0, 4))
	require.EqualValues(t, 7, r.device.read(0, 4))
	require.EqualValues(t, 2, r.device.read(4, 4))
	require.EqualValues(t, 0x30001, r.device.read(writeback, 4))
	require.Zero(t, r.Epoch())
	require.False(t, r.Live(0))
}

func TestTrapFreeVectors(t *testing.T) {
	r := newRig(1)
	r.play(t, func(s *script) { s.linux(4, ring(1)) })
	require.NoError(t, r.Sample())
	require.EqualValues(t, 0, r.ConfigVector())
	require.EqualValues(t, 1, r.QueueVector(0))
	r.common.write(virtiopci.QueueMSIXVector, 2, 2)
	require.EqualValues(t, virtiopci.NoVector, r.QueueVector(0), "there are two vectors")
	r.common.write(virtiopci.ConfigMSIXVector, 2, 1)
	require.EqualValues(t, 1, r.ConfigVector(), "read when it is needed")

	r = newRig(3)
	require.EqualValues(t, virtiopci.NoVector, r.QueueVector(0))
	r.play(t, func(s *script) { s.linux(4, ring(1), ring(2), ring(3)) })
	require.NoError(t, r.Sample())
	for i := range 3 {
		require.EqualValues(t, i+1, r.QueueVector(i))
	}
	require.EqualValues(t, virtiopci.NoVector, r.QueueVector(3))
}

// A driver that changes what it may not, without a reset, is not served on.
func TestTrapFreeLosesItsQueue(t *testing.T) {
	for _, c := range []struct {
		off, width int
		v          uint32
	}{
		{virtiopci.QueueDesc, 4, 0x1234},
		{virtiopci.QueueDevice + 4, 4, 0x1234},
		{virtiopci.QueueSize, 2, 16},
		{virtiopci.QueueEnable, 2, 1},
		{virtiopci.DeviceStatus, 1, 0},
		{virtiopci.DeviceStatus, 1, 0xb},
		{virtiopci.DeviceStatus, 1, 0x8f},
	} {
		r := newRig(1)
		r.play(t, func(s *script) { s.linux(4, ring(1)) })
		require.NoError(t, r.Sample())
		epoch := r.Epoch()
		require.True(t, r.Live(epoch))
		require.False(t, r.Live(epoch+1))
		r.common.write(c.off, c.width, c.v)
		require.False(t, r.Live(epoch))
		require.NoError(t, r.Sample())
		require.False(t, r.Live(epoch))
		require.EqualValues(t, 1, r.Stats().Resets)
	}
}

func TestTrapFreeStopsBeforeItStarts(t *testing.T) {
	r := newRig(1)
	r.hold = true
	r.play(t, func(s *script) { s.linux(4, ring(1)) })
	require.NoError(t, r.Sample())
	want := r.play(t, func(s *script) { s.linux(4, ring(2)) })
	for range 3 {
		require.NoError(t, r.Sample())
		require.Empty(t, r.running)
		require.Len(t, r.stops, 1)
	}
	close(r.stops[0])
	require.NoError(t, r.Sample())
	require.Equal(t, map[int]Queue{0: want[0]}, r.running)
	require.Equal(t, TrapFreeStats{Activations: 2, Resets: 1, MissedResets: 1}, r.Stats())
}

func TestTrapFreeRefusesSizes(t *testing.T) {
	for _, size := range []uint32{0, 257, 65535} {
		r := newRig(1)
		s := newScript(1)
		s.linux(4, ring(1))
		for _, st := range s.steps {
			if st.write {
				r.common.write(st.off, st.width, st.value)
			}
		}
		r.common.write(virtiopci.QueueSize, 2, size)
		require.ErrorIs(t, r.Sample(), ErrSetUp)
		require.NoError(t, r.Sample(), "it is said once")
		require.Empty(t, r.running)
		require.EqualValues(t, 0x4f, r.common.read(virtiopci.DeviceStatus, 1))

		r.common.write(virtiopci.QueueSize, 2, 256)
		r.play(t, func(s *script) { s.reset() })
		require.NoError(t, r.Sample())
		r.play(t, func(s *script) { s.linux(4, ring(1)) })
		require.NoError(t, r.Sample())
		require.Len(t, r.running, 1)
	}
}

func TestTrapFreeSaysWhichQueuesWereMissed(t *testing.T) {
	r := newRig(3)
	s := newScript(3)
	s.linux(4, ring(1), ring(2), ring(3))
	for _, st := range s.steps {
		if st.write {
			r.common.write(st.off, st.width, st.value)
		}
	}
	err := r.Sample()
	require.ErrorIs(t, err, ErrSetUp)
	require.ErrorContains(t, err, "queues [0 1] of 3 were not captured; unbind the driver and bind it again")
	require.Empty(t, r.running)
	require.EqualValues(t, 2, r.Stats().Missed)

	want := r.play(t, func(s *script) { s.linux(4, ring(1), ring(2), ring(3)) })
	require.NoError(t, r.Sample())
	require.Equal(t, map[int]Queue{0: want[0], 1: want[1], 2: want[2]}, r.running)
	require.EqualValues(t, 2, r.Stats().Captured)
	_, ok := r.SettingUp()
	require.False(t, ok)
}

// sampled takes a script's steps and samples behind those that where says, given
// the queue that is selected and the ring that stands in the registers.
func (r *rig) sampled(t testing.TB, s *script, where func(step, sel int, ring uint32) bool) (err error) {
	for i, st := range s.steps {
		if st.write {
			r.common.write(st.off, st.width, st.value)
		} else if got := r.common.read(st.off, st.width); got&st.only != st.value&st.only {
			t.Fatalf("%v reads %#x", st, got)
		}
		whole := r.common.read(virtiopci.QueueDevice+4, 4)
		if err == nil && where(i, int(r.common.read(virtiopci.QueueSelect, 2)), whole) {
			err = r.Sample()
		}
	}
	if err == nil {
		err = r.Sample()
	}
	return err
}

// What another driver left behind is not taken for a queue of this one's, whoever
// was asleep in between.
func TestTrapFreeSeveralQueuesAreOneDrivers(t *testing.T) {
	always := func(int, int, uint32) bool { return true }
	negotiated := func(step, _ int, _ uint32) bool { return step > 26 }
	two := func(a, b Queue) *script {
		s := newScript(most)
		s.linux(4, a, b)
		return s
	}
	half := func(r *rig) { // a driver that ends with its first queue captured
		s := newScript(most)
		s.linuxProbe(4, []Queue{ring(1), ring(2)})
		var captured bool
		for _, st := range s.steps {
			if st.write {
				r.common.write(st.off, st.width, st.value)
			}
			require.NoError(t, r.Sample())
			if captured = r.captures.open && r.captures.queues[0].ok; captured {
				break
			}
		}
		require.True(t, captured)
	}
	for _, c := range []struct {
		name  string
		first func(r *rig)
		where func(step, sel int, ring uint32) bool
		says  string
	}{
		{"asleep until it is ready", half, func(int, int, uint32) bool { return false }, "queues [0] of 2 were not captured"},
		{"asleep until its second queue", half, func(_, sel int, ring uint32) bool { return sel == 1 && ring == 5 }, "queues [0] of 2 were not captured"},
		{"awake", half, always, ""},
		{"asleep until it negotiates", half, negotiated, ""},
		{
			"an enabled queue, and asleep until it negotiates",
			func(r *rig) {
				s := newScript(most)
				s.edk2(ring(9))
				require.NoError(t, r.sampled(t, s, func(step, _ int, _ uint32) bool { return step < 20 }))
				r.common.write(virtiopci.QueueEnable, 2, 1) // as if nobody had looked
			},
			negotiated, "",
		},
		{
			"the last driver's ring again, and asleep in between",
			func(r *rig) { require.NoError(t, r.sampled(t, two(ring(4), ring(5)), always)) },
			func(step, sel int, ring uint32) bool {
				return step < 34 || sel == 1 && ring == 5 && step > 50
			},
			"queues 0 and 1 seem to share memory",
		},
		{"the same rings again", func(r *rig) { require.NoError(t, r.sampled(t, two(ring(4), ring(5)), always)) }, always, ""},
		{"the other way round", func(r *rig) { require.NoError(t, r.sampled(t, two(ring(5), ring(4)), always)) }, always, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(most)
			c.first(r)
			s := two(ring(4), ring(5))
			err := r.sampled(t, s, c.where)
			if c.says != "" {
				require.ErrorIs(t, err, ErrSetUp)
				require.ErrorContains(t, err, c.says)
				require.Empty(t, r.running)
				return
			}
			require.NoError(t, err)
			require.Equal(t, map[int]Queue{0: s.now.queues[0], 1: s.now.queues[1]}, r.running)
		})
	}
}

// A driver that takes its queues back and sets others up is not taken for one
// that enables the first.
func TestTrapFreeRetryHalfSeen(t *testing.T) {
	r := newRig(most)
	asleep := false
	err := r.sampled(t, retry(), func(_, sel int, ring uint32) bool {
		if ring == 3 && sel == 2 && r.common.read(virtiopci.QueueMSIXVector, 2) == virtiopci.NoVector {
			asleep = true
		}
		asleep = asleep && ring != 5
		return !asleep
	})
	require.ErrorContains(t, err, "queues [0] of 3 were not captured")
	require.Empty(t, r.running)
}

func TestTrapFreeSelectionsOfNothing(t *testing.T) {
	r := newRig(most)
	s := newScript(most)
	s.linuxProbe(4, []Queue{ring(1)})
	for _, i := range []int{1000, 0, 65535, 3, 1000} {
		s.sel(i)
	}
	s.status(virtio.Acknowledge | virtio.Driver | virtio.FeaturesOK | virtio.DriverOK)
	err := r.sampled(t, s, func(int, int, uint32) bool { return true })
	require.ErrorIs(t, err, ErrSetUp)
	require.ErrorContains(t, err, "queue 1000 is selected, but there are 3")
	require.Empty(t, r.running)
}

func TestTrapFreeWriteback(t *testing.T) {
	r := newRig(1)
	r.play(t, func(s *script) { s.linux(4, ring(1)) })
	require.NoError(t, r.Sample())
	require.Empty(t, r.wrote)
	r.device.write(writeback, 1, 0)
	require.NoError(t, r.Sample())
	require.NoError(t, r.Sample())
	require.Equal(t, []byte{0}, r.wrote)

	r.play(t, func(s *script) { s.reset() })
	require.NoError(t, r.Sample())
	require.Equal(t, []byte{0}, r.wrote, "a reset leaves it: the next driver reads it")
	require.NoError(t, r.Reset(context.Background()))
	require.Equal(t, []byte{0, 1}, r.wrote)
	require.EqualValues(t, 0x10001, r.device.read(writeback, 4))
}

func TestTrapFreeUpdatesDeviceConfig(t *testing.T) {
	r := newRig(1)
	grow := func(config []byte) { config[0], config[5] = 9, 3 }
	require.False(t, r.UpdateDeviceConfig(grow), "nobody is there")
	require.EqualValues(t, 9, r.device.read(0, 4))
	require.EqualValues(t, 0x302, r.device.read(4, 4))
	require.EqualValues(t, 2, r.common.read(virtiopci.ConfigGeneration, 1))
	r.play(t, func(s *script) { s.linux(4, ring(1)) })
	require.NoError(t, r.Sample())
	r.device.write(writeback, 1, 0)
	require.True(t, r.UpdateDeviceConfig(grow))
	require.EqualValues(t, 4, r.common.read(virtiopci.ConfigGeneration, 1))
	require.EqualValues(t, 0, r.device.read(writeback, 1), "what the driver wrote stays")
	require.True(t, r.Live(r.Epoch()))
}

func TestTrapFreeNeedsReset(t *testing.T) {
	r := newRig(1)
	require.False(t, r.NeedsReset())
	r.play(t, func(s *script) { s.linux(4, ring(1)) })
	require.NoError(t, r.Sample())
	require.True(t, r.NeedsReset())
	require.EqualValues(t, 0x4f, r.common.read(virtiopci.DeviceStatus, 1))
	require.True(t, r.Live(r.Epoch()), "it is the same set-up")
	r.play(t, func(s *script) { s.linux(4, ring(1)) })
	require.NoError(t, r.Sample())
	require.EqualValues(t, 0xf, r.common.read(virtiopci.DeviceStatus, 1))
}

func TestTrapFreeReset(t *testing.T) {
	r := newRig(1)
	r.hold = true
	r.play(t, func(s *script) { s.seabios(ring(1)) })
	require.NoError(t, r.Sample())
	epoch := r.Epoch()
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	require.ErrorIs(t, r.Reset(ctx), context.DeadlineExceeded)
	require.False(t, r.Live(epoch))
	require.EqualValues(t, 256, r.common.read(virtiopci.QueueSize, 2))
	require.Zero(t, r.common.read(virtiopci.DeviceStatus, 1))
	close(r.stops[0])
	require.NoError(t, r.Reset(context.Background()))
	r.play(t, func(s *script) { s.linux(2, ring(1)) })
	require.NoError(t, r.Sample())
	require.Len(t, r.running, 1)
}

func TestTrapFreeSteadyStateAllocatesNothing(t *testing.T) {
	r := newRig(1)
	r.play(t, func(s *script) { s.linux(4, ring(1)) })
	require.NoError(t, r.Sample())
	epoch := r.Epoch()
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if !r.Live(epoch) || r.Sample() != nil {
			t.Error("not live")
		}
	}))
}

// TestTrapFreeAtOnce has a host, a sampler and a worker do as they like.
func TestTrapFreeAtOnce(t *testing.T) {
	r := newRig(1)
	var over atomic.Bool
	var dead atomic.Uint64 // the last set-up whose reset is done
	var wg sync.WaitGroup
	wg.Go(func() {
		for !over.Load() {
			if err := r.Sample(); err != nil {
				t.Error(err)
			}
			runtime.Gosched()
		}
	})
	wg.Go(func() {
		for !over.Load() {
			r.mu.Lock()
			epoch, q := r.epoch, r.running[0]
			r.mu.Unlock()
			before := dead.Load()
			if q.Size != 0 && r.Live(epoch) && q.Desc>>32 <= before {
				t.Errorf("Live with set-up %d, but %d was reset before", q.Desc>>32, before)
			}
		}
	})
	for i := range uint64(300) {
		r.play(t, (*script).reset)
		dead.Store(i)
		want := r.play(t, func(s *script) { s.linux(int(2+i%2*2), ring(i+1)) })
		require.Eventually(t, func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return len(r.running) == 1 && r.running[0] == want[0] && r.Live(r.epoch)
		}, 10*time.Second, 50*time.Microsecond)
	}
	over.Store(true)
	wg.Wait()
}
