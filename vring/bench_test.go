package vring_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// exchange sends chains of three parts through the queue, as a block driver's
// read has them, and back.
type exchange struct {
	*rig
	indirect           bool
	readable, writable []vring.Segment
	chains             []vring.Chain
}

func newExchange(t testing.TB, size, batch int, packed, indirect, transfers bool) *exchange {
	return &exchange{
		rig:      newRig(t, vringtest.Config{Packed: packed, Size: size, EventIdx: true, Indirect: 4}, transfers),
		indirect: indirect,
		readable: segs(seg(0x1000, 16)),
		writable: segs(seg(0x2000, 4096), seg(0x3000, 1)),
		chains:   make([]vring.Chain, batch),
	}
}

func (x *exchange) offer() error {
	direct := 3
	if x.indirect {
		direct = 0
	}
	for range x.chains {
		if _, err := x.drv.AddMixed(x.readable, x.writable, direct); err != nil {
			return err
		}
	}
	x.drv.Kick()
	return nil
}

func (x *exchange) fetch() error {
	for i := range x.chains {
		if ok, err := x.q.Next(&x.chains[i]); !ok || err != nil {
			return fmt.Errorf("chain %d: %v, %w", i, ok, err)
		}
	}
	return nil
}

func (x *exchange) giveBack() error {
	for i := range x.chains {
		x.q.Push(&x.chains[i], 4097)
	}
	if _, err := x.q.Publish(); err != nil {
		return err
	}
	_, err := x.q.EnableNotifications()
	return err
}

func (x *exchange) collectAll() error {
	for range x.chains {
		if _, ok, err := x.drv.Collect(); !ok || err != nil {
			return fmt.Errorf("collect: %v, %w", ok, err)
		}
	}
	x.drv.EnableInterrupts()
	return nil
}

func (x *exchange) once() error {
	for _, f := range [...]func() error{x.offer, x.fetch, x.giveBack, x.collectAll} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// In a steady state neither side allocates.
func TestNoAllocations(t *testing.T) {
	eachWay(t, func(t *testing.T, packed, transfers bool) {
		for _, indirect := range []bool{false, true} {
			x := newExchange(t, 64, 16, packed, indirect, transfers)
			require.NoError(t, x.once())
			require.Zero(t, testing.AllocsPerRun(100, func() {
				if err := x.once(); err != nil {
					panic(err)
				}
			}), "indirect %v", indirect)
		}
	})
}

func benchmarkExchange(b *testing.B, batch int, part func(x *exchange, b *testing.B) error) {
	for bits := range 8 {
		packed, transfers, indirect := bits&4 != 0, bits&2 != 0, bits&1 != 0
		format := "split"
		if packed {
			format = "packed"
		}
		b.Run(fmt.Sprintf("%s/batch=%d/transfers=%v/indirect=%v", format, batch, transfers, indirect), func(b *testing.B) {
			x := newExchange(b, 256, batch, packed, indirect, transfers)
			b.ReportAllocs()
			for n := 0; n < b.N; n += batch {
				if err := part(x, b); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRoundTrip is driver and device together; one operation is one chain.
func BenchmarkRoundTrip(b *testing.B) {
	for _, batch := range []int{1, 32} {
		benchmarkExchange(b, batch, func(x *exchange, _ *testing.B) error { return x.once() })
	}
}

// BenchmarkDevice is Next, Push, Publish and EnableNotifications without the
// driver: the median of what batches took, by chain, which does not show what else
// the machine was doing.
func BenchmarkDevice(b *testing.B) {
	const batch = 64
	var took []time.Duration
	benchmarkExchange(b, batch, func(x *exchange, b *testing.B) error {
		if took == nil {
			took = make([]time.Duration, 0, b.N/batch+1)
			b.ResetTimer()
		}
		if err := x.offer(); err != nil {
			return err
		}
		start := time.Now()
		if err := x.fetch(); err != nil {
			return err
		}
		if err := x.giveBack(); err != nil {
			return err
		}
		took = append(took, time.Since(start))
		if len(took)*batch >= b.N {
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/batch, "median-ns/op")
			took = nil
		}
		return x.collectAll()
	})
}
