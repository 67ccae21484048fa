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
	eachWay(t, func(t *testing.T, packed, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 16, EventIdx: true, Indirect: 16}, transfers)
		var scribble scribbler
		if packed {
			scribble = packedScribbler(r.packed())
		} else {
			scribble = splitScribbler(r.split())
		}
		var stop atomic.Bool
		done := make(chan struct{})
		go func() {
			defer close(done)
			rnd := rand.New(rand.NewPCG(1, 2))
			for !stop.Load() {
				scribble(rnd)
			}
		}()
		defer func() { <-done }()
		defer stop.Store(true)
		r.survive(t, packed, 300*time.Millisecond, 20*time.Second)
	})
}

// A scribbler writes something here and there in a ring of 16 descriptors.
type scribbler func(rnd *rand.Rand)

func splitScribbler(d *vringtest.Driver) scribbler {
	index := uint16(0)
	return func(rnd *rand.Rand) {
		i, j := uint16(rnd.UintN(16)), uint16(rnd.UintN(16))
		flags, after := uint16(rnd.UintN(8)&rnd.UintN(8)), uint16(rnd.UintN(17))
		d.SetDesc(i, d.Table(j), 16*uint32(rnd.UintN(17)), flags, after)
		d.SetTableDesc(j, i, rnd.Uint64(), rnd.Uint32(), flags&3, after)
		d.SetAvail(uint16(rnd.UintN(16)), i)
		if rnd.UintN(4) == 0 {
			index = d.UsedIndex() + uint16(rnd.UintN(4))
		}
		d.SetAvailIndex(index)
		d.SetUsedEvent(index)
	}
}

func packedScribbler(d *vringtest.PackedDriver) scribbler {
	return func(rnd *rand.Rand) {
		i, j := uint16(rnd.UintN(16)), uint16(rnd.UintN(16))
		flags := uint16(rnd.UintN(8) & rnd.UintN(8))
		whose := uint16(rnd.UintN(4))
		d.SetDesc(i, d.Table(j), 16*uint32(rnd.UintN(17)), uint16(rnd.Uint32()), flags|whose&1<<7|whose>>1<<15)
		d.SetTableDesc(j, i, rnd.Uint64(), rnd.Uint32(), uint16(rnd.Uint32()), uint16(rnd.Uint32()))
		d.SetDriverEvent(uint16(rnd.Uint32()), uint16(rnd.Uint32()))
	}
}

// survive goes on for some time, and until it has met both sound chains and
// unsound ones.
func (r *rig) survive(t *testing.T, packed bool, atLeast, atMost time.Duration) {
	const enough = 100
	cfg := r.drv.Queue()
	chains, stopped := 0, 0
	var held []vring.Chain
	for start := time.Now(); time.Since(start) < atLeast || chains < enough || stopped < enough; {
		require.Less(t, time.Since(start), atMost, "%d chains, %d stops", chains, stopped)
		var c vring.Chain
		ok, err := r.q.Next(&c)
		if ok {
			chains++
			require.LessOrEqual(t, len(c.Readable)+len(c.Writable), cfg.MaxChain)
			held = append(held, c)
			require.LessOrEqual(t, len(held), cfg.Size)
			require.Equal(t, len(held), r.q.InFlight())
		}
		if !ok || chains%3 == 0 {
			for i := range held {
				r.q.Push(&held[i], 0)
			}
			held = held[:0]
			_, published := r.q.Publish()
			require.NoError(t, published)
		}
		if err == nil || ok {
			_, err = r.q.EnableNotifications()
			ok = false
		}
		if err != nil && !ok {
			require.True(t, vring.IsMalformed(err), "%v", err)
			stopped++
			if !packed {
				cfg.Start = r.split().UsedIndex()
			}
			held = held[:0]
			r.q, err = newQueue(r.mem, packed, cfg)
			require.NoError(t, err)
		}
	}
}
