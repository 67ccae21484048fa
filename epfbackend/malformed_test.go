package epfbackend_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// What a driver gets wrong in the ring stops the device until it is reset: it says
// so, touches nothing more, and comes back.
func TestMalformedRings(t *testing.T) {
	const next, write, indirect = vringtest.FlagNext, vringtest.FlagWrite, vringtest.FlagIndirect
	for _, c := range []struct {
		name  string
		do    func(q *rc.Queue, a uint64) // a: some memory
		index uint16                      // available, instead of 1
	}{
		{name: "no status", do: func(q *rc.Queue, a uint64) { q.SetDesc(0, a, 16, 0, 0) }},
		{name: "empty chain", do: func(q *rc.Queue, a uint64) { q.SetDesc(0, a, 0, write, 0) }},
		{name: "loop", do: func(q *rc.Queue, a uint64) {
			q.SetDesc(0, a, 16, next, 1)
			q.SetDesc(1, a, 16, next, 0)
		}},
		{name: "loop of one", do: func(q *rc.Queue, a uint64) { q.SetDesc(0, a, 16, next, 0) }},
		{name: "next out of range", do: func(q *rc.Queue, a uint64) { q.SetDesc(0, a, 16, next, 64) }},
		{name: "head out of range", do: func(q *rc.Queue, a uint64) { q.SetAvail(0, 64) }},
		{name: "readable after writable", do: func(q *rc.Queue, a uint64) {
			q.SetDesc(0, a, 16, next|write, 1)
			q.SetDesc(1, a, 16, 0, 0)
		}},
		{name: "buffer that wraps around", do: func(q *rc.Queue, a uint64) { q.SetDesc(0, ^uint64(0), 16, write, 0) }},
		{name: "indirect table of odd length", do: func(q *rc.Queue, a uint64) { q.SetDesc(0, a, 17, indirect, 0) }},
		{name: "indirect table of no length", do: func(q *rc.Queue, a uint64) { q.SetDesc(0, a, 0, indirect, 0) }},
		{name: "indirect table that is huge", do: func(q *rc.Queue, a uint64) { q.SetDesc(0, a, 0xfffffff0, indirect, 0) }},
		{name: "indirect table nowhere", do: func(q *rc.Queue, a uint64) { q.SetDesc(0, 1<<40, 16, indirect, 0) }},
		{name: "indirect table in the middle", do: func(q *rc.Queue, a uint64) { q.SetDesc(0, a, 16, indirect|next, 1) }},
		{name: "nested indirect table", do: func(q *rc.Queue, a uint64) {
			q.SetDesc(0, q.Table(0), 16, indirect, 0)
			q.SetTableDesc(0, 0, a, 16, indirect, 0)
		}},
		{name: "available index too far ahead", do: func(*rc.Queue, uint64) {}, index: 65},
		{name: "available index that goes back", do: func(*rc.Queue, uint64) {}, index: 0xffff},
	} {
		for _, intx := range []bool{false, true} {
			t.Run(c.name, func(t *testing.T) {
				r := newRig(t, setup{intx: intx, queue: rc.QueueConfig{Size: 64, Indirect: 4}})
				a, err := r.mem.Alloc(4096, 4096)
				require.NoError(t, err)
				r.q.SetAvail(0, 0)
				r.q.SetDesc(0, a, 16, next|write, 0)
				c.do(r.q, a)
				r.q.SetAvailIndex(max(c.index, 1))
				require.NoError(t, r.q.Notify())
				r.broken()
				for range 3 { // and it stays quiet
					require.NoError(t, r.q.Notify())
				}
				require.Zero(t, r.q.UsedIndex())
				r.revive()
			})
		}
	}
}

// Indirect descriptors must have been negotiated.
func TestIndirectNotNegotiated(t *testing.T) {
	r := newRig(t, setup{refuse: []virtio.Feature{virtio.IndirectDesc}, queue: rc.QueueConfig{Size: 64}})
	a, err := r.mem.Alloc(4096, 4096)
	require.NoError(t, err)
	r.q.SetDesc(0, a, 16, vringtest.FlagIndirect, 0)
	r.q.SetAvailIndex(1)
	require.NoError(t, r.q.Notify())
	r.broken()
	r.revive()
}

// A ring that is nowhere, or misaligned, cannot be started.
func TestRingNowhere(t *testing.T) {
	r := newSlot(t, setup{})
	for _, move := range []func(q *vring.Config){
		func(q *vring.Config) { q.Desc = 1 << 40 },
		func(q *vring.Config) { q.Driver = 1 << 40 },
		func(q *vring.Config) { q.Device = 1 << 40 },
		func(q *vring.Config) { q.Desc++ },
		func(q *vring.Config) { q.Driver++ },
		func(q *vring.Config) { q.Device++ },
		func(q *vring.Config) { q.Desc = ^uint64(0) &^ 15 },
		func(q *vring.Config) { q.Desc, q.Driver, q.Device = 0, 0, 0 },
	} {
		r.negotiate()
		d, err := vringtest.NewDriver(r.mem, vringtest.Config{Size: 64})
		require.NoError(t, err)
		q := d.Queue()
		move(&q)
		require.NoError(t, r.dev.EnableQueue(0, q, 1))
		require.NoError(t, r.dev.Start())
		r.broken()
		r.revive()
	}
}

// A driver that is wrong in one queue must reset the device; until then the other
// queues go on.
func TestOneOfTwoQueuesIsBroken(t *testing.T) {
	s := setup{queue: rc.QueueConfig{Size: 64}}
	s.options.Queues = 2
	r := newSlot(t, s)
	r.negotiate()
	r.q = r.newQueue(r.queue)
	other := r.newQueue(rc.QueueConfig{Index: 1, Size: 64})
	require.NoError(t, r.dev.Start())
	other.SetAvailIndex(65)
	require.NoError(t, other.Notify())
	r.broken()
	r.must(virtioblk.TypeOut, 0, make([]byte, 4096))
	r.revive()
}

// A link that goes down makes nonsense of a ring before we are told of it: the host that
// has gone is not blamed. One that stays is.
func TestNonsenseOfALinkThatGoesDown(t *testing.T) {
	nonsense := func(t *testing.T) *rig {
		r := newRig(t, setup{link: shuffled(5), queue: rc.QueueConfig{Size: 64}})
		r.q.SetAvail(0, 0)
		r.q.SetDesc(0, ^uint64(0), ^uint32(0), ^uint16(0), ^uint16(0))
		r.q.SetAvailIndex(1)
		require.NoError(t, r.q.Notify())
		return r
	}
	t.Run("it goes", func(t *testing.T) {
		// How soon the ring is found, and the end told, is the machine's business.
		for range 20 {
			r := nonsense(t)
			time.Sleep(10 * time.Millisecond)
			require.NoError(t, r.fn.Reset(t.Context()))
			if l := r.log.String(); strings.Contains(l, "the queue has ended") && !strings.Contains(l, "needs a reset") {
				return
			}
		}
		require.Fail(t, "the host is blamed each time")
	})
	t.Run("it stays", func(t *testing.T) { nonsense(t).broken() })
}
