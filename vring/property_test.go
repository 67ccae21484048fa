package vring_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// A chain as the driver described it.
type buffer struct {
	head               uint16
	readable, writable []vring.Segment
}

// model is a virtqueue without a ring: lists, and positions that do not wrap.
type model struct {
	*rig
	t   *testing.T
	rnd *rand.Rand
	cfg vringtest.Config

	added, available []buffer // by the driver, and of those what the device may see
	inFlight         []*vring.Chain
	pushed, used     []vringtest.Used

	addedAt, kickedAt, nextAt      int // positions of chains, from Config.Start on
	pushedAt, publishedAt, collect int
	wantKick, wantIRQ              bool // without EVENT_IDX
	kickEvent, irqEvent            int  // with it
}

// TestAgainstModel plays driver and device in random turns, and compares each
// answer with that of the model.
func TestAgainstModel(t *testing.T) {
	for size := 1; size <= 256; size *= 2 {
		for bits := range 16 {
			cfg := vringtest.Config{Size: size, EventIdx: bits&1 != 0, Start: 0xfff0, Skew: bits&4 != 0}
			if bits&2 != 0 {
				cfg.Indirect = 5
			}
			if bits&8 != 0 {
				cfg.Start = uint16(0x10000 - 3*size)
			}
			for _, transfers := range []bool{false, true} {
				name := fmt.Sprintf("size %d/event %v/indirect %v/skew %v/start %#x/transfers %v",
					size, cfg.EventIdx, cfg.Indirect > 0, cfg.Skew, cfg.Start, transfers)
				t.Run(name, func(t *testing.T) { runModel(t, cfg, transfers, uint64(size*100+bits)) })
			}
		}
	}
}

func runModel(t *testing.T, cfg vringtest.Config, transfers bool, seed uint64) {
	at := int(cfg.Start)
	m := &model{
		rig: newRig(t, cfg, transfers), t: t, cfg: cfg, rnd: rand.New(rand.NewPCG(seed, 1)),
		addedAt: at, kickedAt: at, nextAt: at, pushedAt: at, publishedAt: at, collect: at,
		wantKick: true, wantIRQ: true, kickEvent: at, irqEvent: at,
	}
	steps := []func(){
		m.add, m.add, m.add, m.kick, m.next, m.next, m.next, m.push, m.push, m.publish, m.collectAll,
		m.enableNotifications, m.disableNotifications, m.enableInterrupts, m.disableInterrupts, m.resolve,
	}
	const enough, tooMuch = 2000, 100000
	for n := 0; n < enough || m.collect <= 0x10000 && n < tooMuch; n++ {
		steps[m.rnd.IntN(len(steps))]()
		require.Equal(t, len(m.inFlight), m.q.InFlight())
	}
	m.drain()
	require.Greater(t, m.collect, 0x10000, "the indices wrapped")
}

// drain finishes everything and finds both sides empty.
func (m *model) drain() {
	m.kick()
	for len(m.available) > 0 {
		m.next()
	}
	for len(m.inFlight) > 0 {
		m.push()
	}
	m.publish()
	m.collectAll()
	require.Equal(m.t, m.addedAt, m.collect)
	require.Equal(m.t, m.cfg.Size, m.drv.Free())
	require.Zero(m.t, m.drv.InFlight())
}

func (m *model) segments(n int) (list []vring.Segment) {
	for range n {
		list = append(list, seg(m.rnd.Uint64()>>1, 1+m.rnd.Uint32N(1<<20)))
	}
	return list
}

func (m *model) add() {
	b := buffer{readable: m.segments(m.rnd.IntN(3)), writable: m.segments(m.rnd.IntN(4))}
	total := len(b.readable) + len(b.writable)
	if total == 0 {
		return
	}
	free := m.drv.Free()
	direct := total
	if m.cfg.Indirect > 0 {
		direct = min(m.rnd.IntN(total+1), free-1)
	}
	if direct < 0 || direct > free && m.rnd.IntN(8) != 0 {
		return // mostly, or small queues would see nothing else
	}
	head, err := m.drv.AddMixed(b.readable, b.writable, direct)
	if err != nil {
		require.ErrorIs(m.t, err, vringtest.ErrNoRoom)
		require.Equal(m.t, free, m.drv.Free())
		return
	}
	b.head = head
	m.added = append(m.added, b)
	m.addedAt++
}

func (m *model) kick() {
	want := m.addedAt > m.kickedAt
	if m.cfg.EventIdx {
		want = holds(m.kickedAt, m.addedAt, m.kickEvent)
	} else {
		want = want && m.wantKick
	}
	require.Equal(m.t, want, m.drv.Kick(), "notification")
	m.available = append(m.available, m.added...)
	m.added, m.kickedAt = nil, m.addedAt
}

// holds says whether position event, or one that looks the same in 16 bits, is
// among from to to-1.
func holds(from, to, event int) bool {
	for at := from; at < to; at++ {
		if uint16(at) == uint16(event) {
			return true
		}
	}
	return false
}

func (m *model) next() {
	c := new(vring.Chain)
	ok, err := m.q.Next(c)
	require.NoError(m.t, err)
	require.Equal(m.t, len(m.available) > 0, ok)
	if !ok {
		return
	}
	want := m.available[0]
	m.available = m.available[1:]
	m.nextAt++
	require.Equal(m.t, want.head, c.Head)
	requireSegments(m.t, want.readable, c.Readable, c.ReadableLen)
	requireSegments(m.t, want.writable, c.Writable, c.WritableLen)
	m.inFlight = append(m.inFlight, c)
}

func requireSegments(t *testing.T, want, got []vring.Segment, n uint64) {
	t.Helper()
	require.Len(t, got, len(want))
	for i, s := range want {
		require.Equal(t, s, got[i])
		n -= uint64(s.Len)
	}
	require.Zero(t, n, "sum of lengths")
}

func (m *model) push() {
	if len(m.inFlight) == 0 {
		return
	}
	i := m.rnd.IntN(len(m.inFlight))
	c := m.inFlight[i]
	m.inFlight = append(m.inFlight[:i], m.inFlight[i+1:]...)
	u := vringtest.Used{Head: c.Head, Written: m.rnd.Uint32()}
	m.q.Push(c, u.Written)
	m.pushed = append(m.pushed, u)
	m.pushedAt++
}

func (m *model) publish() {
	want := m.pushedAt > m.publishedAt
	if m.cfg.EventIdx {
		want = holds(m.publishedAt, m.pushedAt, m.irqEvent)
	} else {
		want = want && m.wantIRQ
	}
	interrupt, err := m.q.Publish()
	require.NoError(m.t, err)
	require.Equal(m.t, want, interrupt, "interrupt")
	m.used = append(m.used, m.pushed...)
	m.pushed, m.publishedAt = nil, m.pushedAt
}

func (m *model) collectAll() {
	for _, want := range m.used {
		require.Equal(m.t, want, m.rig.collect(m.t))
		m.collect++
	}
	m.used = nil
	_, ok, err := m.drv.Collect()
	require.NoError(m.t, err)
	require.False(m.t, ok)
}

func (m *model) enableNotifications() {
	more, err := m.q.EnableNotifications()
	require.NoError(m.t, err)
	require.Equal(m.t, len(m.available) > 0, more)
	m.wantKick, m.kickEvent = true, m.nextAt
}

func (m *model) disableNotifications() {
	require.NoError(m.t, m.q.DisableNotifications())
	m.wantKick = false
}

func (m *model) enableInterrupts() {
	require.Equal(m.t, len(m.used) > 0, m.drv.EnableInterrupts())
	m.wantIRQ, m.irqEvent = true, m.collect
}

func (m *model) disableInterrupts() {
	m.drv.DisableInterrupts()
	m.wantIRQ = false
}

// resolve changes the kind of memory under the live queue now and then.
func (m *model) resolve() {
	if m.rnd.IntN(4) == 0 {
		m.mem.TransfersOnly(m.rnd.IntN(2) == 0)
		require.NoError(m.t, m.q.Resolve())
	}
}
