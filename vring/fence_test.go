package vring_test

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// duel is many queues along which two goroutines, the device and the driver, walk
// in step: at each they act within a few nanoseconds of each other, on memory
// that is not in their caches. Then what a missing fence breaks is seen often.
type duel struct {
	queues         []*exchange
	device, driver side
}

// side is one of the two.
type side struct {
	at   atomic.Int64 // the queue it stands at
	said []bool       // by queue
	_    [64]byte
}

const duelQueues = 1000

func newDuel(t *testing.T, packed, event bool) *duel {
	d := &duel{device: side{said: make([]bool, duelQueues)}, driver: side{said: make([]bool, duelQueues)}}
	mem := newMemory(t, vringtest.Range{Base: 0x10000, Size: 1 << 20})
	for range duelQueues {
		d.queues = append(d.queues, &exchange{
			rig:      rigIn(t, mem, vringtest.Config{Packed: packed, Size: 1, EventIdx: event}),
			readable: segs(seg(0x1000, 16)), chains: make([]vring.Chain, 1),
		})
	}
	return d
}

// fight prepares all queues, lets both sides act, and judges; for a while.
func (d *duel) fight(prepare func(*exchange), device, driver func(*exchange) bool, judge func(*exchange, bool)) {
	for end := time.Now().Add(400 * time.Millisecond); time.Now().Before(end); {
		for _, x := range d.queues {
			prepare(x)
		}
		d.device.at.Store(-1)
		d.driver.at.Store(-1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.walk(&d.driver, &d.device, driver)
		}()
		d.walk(&d.device, &d.driver, device)
		<-done
		for i, x := range d.queues {
			judge(x, d.device.said[i] || d.driver.said[i])
		}
	}
}

func (d *duel) walk(me, other *side, act func(*exchange) bool) {
	for i, x := range d.queues {
		me.at.Store(int64(i))
		for spins := 0; other.at.Load() < int64(i); spins++ {
			if spins > 100000 {
				runtime.Gosched()
			}
		}
		me.said[i] = act(x)
	}
}

func eachDuel(t *testing.T, f func(t *testing.T, d *duel)) {
	eachFormat(t, func(t *testing.T, packed bool) {
		for _, event := range []bool{false, true} {
			f(t, newDuel(t, packed, event))
		}
	})
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// The driver adds a chain while the device is going to sleep. Without a fence
// between store and load on either side, both can miss the other.
func TestKickMeetsEnableNotifications(t *testing.T) {
	eachDuel(t, func(t *testing.T, d *duel) {
		d.fight(func(x *exchange) {
			must(x.q.DisableNotifications())
			_, err := x.drv.Add(x.readable, nil)
			must(err)
		}, func(x *exchange) bool {
			more, err := x.q.EnableNotifications()
			must(err)
			return more
		}, func(x *exchange) bool {
			return x.drv.Kick()
		}, func(x *exchange, noticed bool) {
			if !noticed {
				t.Fatal("a chain was lost")
			}
			must(x.fetch())
			x.q.Push(&x.chains[0], 0)
			_, err := x.q.Publish()
			must(err)
			must(x.collectAll())
		})
	})
}

// The device publishes a used chain while the driver is going to sleep.
func TestPublishMeetsEnableInterrupts(t *testing.T) {
	eachDuel(t, func(t *testing.T, d *duel) {
		d.fight(func(x *exchange) {
			x.drv.DisableInterrupts()
			must(x.offer())
			must(x.fetch())
			x.q.Push(&x.chains[0], 0)
		}, func(x *exchange) bool {
			interrupt, err := x.q.Publish()
			must(err)
			return interrupt
		}, func(x *exchange) bool {
			return x.drv.EnableInterrupts()
		}, func(x *exchange, noticed bool) {
			if !noticed {
				t.Fatal("a used chain was lost")
			}
			_, ok, err := x.drv.Collect()
			must(err)
			require.True(t, ok)
		})
	})
}
