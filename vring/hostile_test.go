package vring_test

import (
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// TestDriverScribbles lets a driver change everything in the ring while the
// device reads it. The device must keep its bounds: it neither panics nor spins,
// and never holds or reports more than it should.
func TestDriverScribbles(t *testing.T) {
	bothWays(t, func(t *testing.T, transfers bool) {
		r := newRig(t, vringtest.Config{Size: 16, EventIdx: true, Indirect: 16}, transfers)
		var stop atomic.Bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			rnd := rand.New(rand.NewPCG(1, 2))
			for index := uint16(0); !stop.Load(); {
				i, j := uint16(rnd.UintN(16)), uint16(rnd.UintN(16))
				flags, after := uint16(rnd.UintN(8)&rnd.UintN(8)), uint16(rnd.UintN(17))
				r.drv.SetDesc(i, r.drv.Table(j), 16*uint32(rnd.UintN(17)), flags, after)
				r.drv.SetTableDesc(j, i, rnd.Uint64(), rnd.Uint32(), flags&3, after)
				r.drv.SetAvail(uint16(rnd.UintN(16)), i)
				if rnd.UintN(4) == 0 {
					index = r.drv.UsedIndex() + uint16(rnd.UintN(4))
				}
				r.drv.SetAvailIndex(index)
				r.drv.SetUsedEvent(index)
			}
		}()
		defer func() { <-done }()
		defer stop.Store(true)
		r.survive(t, 300*time.Millisecond, 20*time.Second)
	})
}

// survive goes on for some time, and until it has met both sound chains and
// unsound ones.
func (r *rig) survive(t *testing.T, atLeast, atMost time.Duration) {
	const enough = 100
	cfg := r.drv.Queue()
	chains, stopped := 0, 0
	var c vring.Chain
	for start := time.Now(); time.Since(start) < atLeast || chains < enough || stopped < enough; {
		require.Less(t, time.Since(start), atMost, "%d chains, %d stops", chains, stopped)
		ok, err := r.q.Next(&c)
		if ok {
			chains++
			require.LessOrEqual(t, len(c.Readable)+len(c.Writable), cfg.MaxChain)
			r.q.Push(&c, 0)
		}
		_, published := r.q.Publish()
		require.NoError(t, published)
		if err != nil && !ok {
			require.True(t, vring.IsMalformed(err), "%v", err)
			stopped++
			cfg.Start = r.drv.UsedIndex()
			r.q, err = vring.NewSplit(r.mem, cfg)
			require.NoError(t, err)
		}
	}
}
