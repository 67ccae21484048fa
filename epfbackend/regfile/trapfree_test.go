package regfile

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// stock are the drivers, each with one queue. The last two also let go of it.
var stock = []struct {
	name string
	run  func(s *script, q Queue)
	keep bool // leaves queue_size as it finds it
}{
	{"Linux with 64 bits", func(s *script, q Queue) { s.linux(2, q) }, true},
	{"Linux with 128 bits", func(s *script, q Queue) { s.linux(4, q) }, true},
	{"SeaBIOS", func(s *script, q Queue) { s.seabios(q) }, false},
	{"edk2", func(s *script, q Queue) { s.edk2(q) }, true},
	{"U-Boot", func(s *script, q Queue) { s.uboot(q) }, true},
	{"Linux and out", func(s *script, q Queue) { s.linux(4, q); s.linuxRemove(1) }, true},
	{"U-Boot and out", func(s *script, q Queue) { s.uboot(q); s.ubootRemove() }, true},
}

// TestEveryInterleavingOfEachDriver: it may be cut short anywhere, and stay so.
func TestEveryInterleavingOfEachDriver(t *testing.T) {
	for _, d := range stock {
		t.Run(d.name, func(t *testing.T) {
			s := newScript(1)
			d.run(s, ring(1))
			(&model{t: t, script: s}).run()
			if d.keep {
				s.reset()
				(&model{t: t, script: s, crash: true}).run()
			}
		})
	}
}

// TestEveryInterleavingOfTwoDrivers has each driver follow each, on rings of its
// own.
func TestEveryInterleavingOfTwoDrivers(t *testing.T) {
	for _, a := range stock {
		for _, b := range stock[:5] {
			t.Run(a.name+", "+b.name, func(t *testing.T) {
				s := newScript(1)
				a.run(s, ring(1))
				b.run(s, ring(2))
				(&model{t: t, script: s}).run()
			})
		}
	}
}

// TestEveryInterleavingOnTheSameRings: nothing but a mark tells the second set-up
// from the first.
func TestEveryInterleavingOnTheSameRings(t *testing.T) {
	for _, d := range stock {
		t.Run(d.name, func(t *testing.T) {
			s := newScript(1)
			d.run(s, ring(1))
			d.run(s, ring(1))
			(&model{t: t, script: s}).run()
		})
	}
}

// TestEveryInterleavingAfterACrash: the second driver comes while the first is
// anywhere, and finds what that left.
func TestEveryInterleavingAfterACrash(t *testing.T) {
	for _, next := range []uint64{1, 2} {
		for _, b := range stock[1:5] {
			t.Run(b.name, func(t *testing.T) {
				s := newScript(1)
				s.linux(2, ring(1))
				b.run(s, ring(next))
				(&model{t: t, script: s, crash: true}).run()
			})
		}
	}
}

// TestEveryInterleavingOfThreeDrivers: what the first leaves behind for the third.
func TestEveryInterleavingOfThreeDrivers(t *testing.T) {
	for _, same := range []bool{false, true} {
		s := newScript(1)
		s.uboot(ring(1))
		if same {
			s.uboot(ring(1))
			s.uboot(ring(1))
		} else {
			s.edk2(ring(2))
			s.linux(2, ring(1))
		}
		(&model{t: t, script: s}).run()
	}
}

// TestEveryInterleavingWithOtherCalls has the endpoint set DEVICE_NEEDS_RESET and
// change the device configuration at any time.
func TestEveryInterleavingWithOtherCalls(t *testing.T) {
	for _, again := range []uint64{1, 2} {
		s := newScript(1)
		s.uboot(ring(1))
		s.uboot(ring(again))
		(&model{t: t, script: s, calls: 1}).run()
	}
}

// TestEveryInterleavingOfSeveralQueues: what is served is what was set up, or
// nothing is, and the driver is told.
func TestEveryInterleavingOfSeveralQueues(t *testing.T) {
	for _, c := range []struct {
		name   string
		rows   func(s *script)
		misses bool
	}{
		{"SeaBIOS", func(s *script) { s.seabios(ring(1)) }, false},
		{"Linux with one", func(s *script) { s.linux(4, ring(1)) }, false},
		{"Linux with two", func(s *script) { s.linux(4, low(1), low(2)) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScript(most)
			c.rows(s)
			m := &model{t: t, script: s}
			m.run()
			require.Equal(t, c.misses, m.refused != 0)
		})
	}
}

// walks takes random paths through the graphs of rows that rows makes, from long
// bursts of the endpoint's to long bursts of the driver's.
func walks(t *testing.T, n int, crash bool, rows func(rng *rand.Rand) *script) (served, refused int) {
	pace := []int{1, 3, 10, 40, 200}
	for i := range n {
		rng := rand.New(rand.NewPCG(uint64(i), 7))
		m := &model{t: t, script: rows(rng), crash: crash}
		m.walk(rng, pace[i%5], 1, pace[i/5%5])
		if t.Failed() {
			t.Fatalf("path %d", i)
		}
		served += m.served
		refused += m.refused
	}
	return served, refused
}

// TestRandomPathsOfSeveralQueues takes more drivers and queues than a whole graph
// could hold.
func TestRandomPathsOfSeveralQueues(t *testing.T) {
	for _, c := range []struct {
		name string
		rows func(s *script)
	}{
		{"Linux with all", func(s *script) { s.linux(4, ring(1), ring(2), ring(3)) }},
		{"U-Boot, Linux", func(s *script) { s.uboot(ring(1)); s.linux(2, ring(2), ring(3)) }},
		{"again", func(s *script) { s.linux(2, ring(1), ring(2)); s.linux(2, ring(1), ring(2)) }},
		{"the other way round", func(s *script) { s.linux(2, ring(1), ring(2)); s.linux(2, ring(2), ring(1)) }},
		{"rotated", func(s *script) {
			s.linux(2, ring(1), ring(2), ring(3))
			s.linux(2, ring(3), ring(1), ring(2))
			s.linux(2, ring(2), ring(3), ring(1))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, crash := range []bool{false, true} {
				served, refused := walks(t, 500, crash, func(*rand.Rand) *script {
					s := newScript(most)
					c.rows(s)
					return s
				})
				require.NotZero(t, served)
				require.NotZero(t, refused)
				t.Logf("%d served, %d refused", served, refused)
			}
		})
	}
}

// TestRandomPathsOfManyDrivers has ten drivers in a row, on few rings.
func TestRandomPathsOfManyDrivers(t *testing.T) {
	for _, num := range []int{1, most} {
		served, refused := walks(t, 500, true, func(rng *rand.Rand) *script {
			s := newScript(num)
			s.first, s.size = 128, 128 // which SeaBIOS leaves as it is, wherever it is cut
			for range 10 {
				stock[rng.IntN(len(stock))].run(s, ring(uint64(rng.IntN(2))))
			}
			stock[rng.IntN(5)].run(s, ring(uint64(rng.IntN(2))))
			return s
		})
		require.Zero(t, refused)
		require.Equal(t, 500, served)
	}
}

// retry lets go of its queues and sets others up without negotiating again.
func retry() *script {
	s := newScript(most)
	s.linuxRetries(4, []Queue{ring(1), ring(2), ring(3)}, []Queue{ring(4), ring(5), ring(6)})
	return s
}

// TestRetryUnderEyes: whoever samples between any two steps of the driver serves
// the queues that count.
func TestRetryUnderEyes(t *testing.T) {
	served := 0
	for i := range 300 {
		rng := rand.New(rand.NewPCG(uint64(i), 11))
		m := &model{t: t, script: retry()}
		m.walk(rng, 2, 30+i%30, 60)
		served += m.served
	}
	require.NotZero(t, served)
}

// TestHoles shows that what the documentation of TrapFree and captures says
// cannot be told is so, and no more than that.
func TestHoles(t *testing.T) {
	t.Run("a driver that comes before any sample", func(t *testing.T) {
		s := newScript(1)
		s.seabios(ring(1))
		s.linux(4, ring(2))
		m := &model{t: t, script: s, unpace: true, hole: true}
		m.explore()
		require.Contains(t, m.flaw, "the driver fails: queue_enable")
		m = &model{t: t, script: s}
		m.run()
	})
}

// TestRetryUnseen: a driver that lets go of its queues while nobody looks is not
// served with any that it has taken back.
func TestRetryUnseen(t *testing.T) {
	r := newRig(most)
	asleep := false
	var err error
	for _, st := range retry().steps {
		if st.write {
			r.common.write(st.off, st.width, st.value)
		}
		at := r.common.read(virtiopci.QueueDesc+4, 4)
		switch sel := r.common.read(virtiopci.QueueSelect, 2); {
		case at == 1 && sel == 1:
			err = errors.Join(err, r.Sample())
			asleep = true
		case at == 5:
			asleep = false
		}
		if !asleep {
			err = errors.Join(err, r.Sample())
		}
	}
	require.ErrorIs(t, err, ErrSetUp)
	require.Empty(t, r.running)
	require.NotZero(t, r.common.read(virtiopci.DeviceStatus, 1)&uint32(virtio.NeedsReset))
}
