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
	steps              int // what positions count: chains; descriptors in a packed ring
}

// A chain as the device holds it, and gives it back.
type held struct {
	chain *vring.Chain
	steps int
}

// wish is what one side told the other about notifications: all, none, or the
// one for a position.
type wish struct {
	all, one bool
	position int
}

// model is a virtqueue without a ring: lists, and positions that do not wrap.
type model struct {
	*rig
	t   *testing.T
	rnd *rand.Rand
	cfg vringtest.Config

	added, available []buffer // by the driver, and of those what the device may see
	inFlight         []held
	pushed, used     []vringtest.Used
	usedSteps        []int // of pushed and used ones, by order

	start, wrap                    int // wrap: positions look the same after so many
	addedAt, kickedAt, nextAt      int
	pushedAt, publishedAt, collect int
	wantKick, wantIRQ              wish
}

// TestAgainstModel plays driver and device in random turns, and compares each
// answer with that of the model.
func TestAgainstModel(t *testing.T) {
	for _, size := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256} {
		for bits := range 16 {
			start := uint16(0xfff0)
			if bits&8 != 0 {
				start = uint16(0x10000 - 3*size)
			}
			modelBothWays(t, size, bits, vringtest.Config{Start: start})
		}
	}
}

// TestPackedAgainstModel is the same with packed virtqueues. Their size is any.
func TestPackedAgainstModel(t *testing.T) {
	for _, size := range []int{1, 2, 3, 5, 8, 17, 64, 100, 255, 256} {
		for bits := range 16 {
			start := uint16(0)
			if bits&8 != 0 {
				start = nearWrap(true, size, 1+size/3)
			}
			modelBothWays(t, size, bits, vringtest.Config{Packed: true, Start: start, FirstID: 0xfff8})
		}
	}
}

func modelBothWays(t *testing.T, size, bits int, cfg vringtest.Config) {
	cfg.Size, cfg.EventIdx, cfg.Skew = size, bits&1 != 0, bits&4 != 0
	if bits&2 != 0 {
		cfg.Indirect = 5
	}
	for _, transfers := range []bool{false, true} {
		name := fmt.Sprintf("size %d/event %v/indirect %v/skew %v/start %#x/transfers %v",
			size, cfg.EventIdx, cfg.Indirect > 0, cfg.Skew, cfg.Start, transfers)
		t.Run(name, func(t *testing.T) { runModel(t, cfg, transfers, uint64(size*100+bits)) })
	}
}

func newModel(t *testing.T, cfg vringtest.Config, transfers bool, seed uint64) *model {
	at, wrap := int(cfg.Start), 1<<16
	first := wish{all: !cfg.EventIdx, one: cfg.EventIdx, position: at}
	if cfg.Packed {
		at, wrap = int(cfg.Start&0x7fff)+int(cfg.Start>>15)*cfg.Size, 2*cfg.Size
		first = wish{all: true}
	}
	return &model{
		rig: newRig(t, cfg, transfers), t: t, cfg: cfg, rnd: rand.New(rand.NewPCG(seed, 1)),
		start: at, wrap: wrap, addedAt: at, kickedAt: at, nextAt: at, pushedAt: at, publishedAt: at, collect: at,
		wantKick: first, wantIRQ: first,
	}
}

func runModel(t *testing.T, cfg vringtest.Config, transfers bool, seed uint64) {
	m := newModel(t, cfg, transfers, seed)
	steps := []func(){
		m.add, m.add, m.add, m.kick, m.next, m.next, m.next, m.push, m.push, m.publish, m.collectAll,
		m.enableNotifications, m.disableNotifications, m.enableInterrupts, m.disableInterrupts, m.resolve,
	}
	end := 0x10000 // where split indices wrap
	if cfg.Packed {
		end = m.start + 5*cfg.Size
	}
	const enough, tooMuch = 2000, 100000
	for n := 0; n < enough || m.collect <= end && n < tooMuch; n++ {
		steps[m.rnd.IntN(len(steps))]()
		require.Equal(t, len(m.inFlight), m.q.InFlight())
	}
	m.drain()
	require.Greater(t, m.collect, end, "the positions wrapped")
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
	if m.cfg.Packed && direct < total {
		direct = min(direct, 0)
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
	b.head, b.steps = head, 1
	if m.cfg.Packed {
		b.steps = free - m.drv.Free()
		require.Equal(m.t, max(direct, 1), b.steps)
	}
	m.added = append(m.added, b)
	m.addedAt += b.steps
}

func (m *model) kick() {
	want := m.wanted(m.wantKick, m.kickedAt, m.addedAt)
	require.Equal(m.t, want, m.drv.Kick(), "notification")
	m.available = append(m.available, m.added...)
	m.added, m.kickedAt = nil, m.addedAt
}

// wanted says whether w asks for a notification when positions from to to-1 are
// passed: whether one of them, or one that looks the same, is the one wished for.
func (m *model) wanted(w wish, from, to int) bool {
	for at := from; at < to; at++ {
		if w.all || w.one && (at-w.position)%m.wrap == 0 {
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
	m.nextAt += want.steps
	require.Equal(m.t, want.head, c.Head)
	requireSegments(m.t, want.readable, c.Readable, c.ReadableLen)
	requireSegments(m.t, want.writable, c.Writable, c.WritableLen)
	m.inFlight = append(m.inFlight, held{c, want.steps})
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
	c, steps := m.inFlight[i].chain, m.inFlight[i].steps
	m.inFlight = append(m.inFlight[:i], m.inFlight[i+1:]...)
	u := vringtest.Used{Head: c.Head, Written: m.rnd.Uint32() >> m.rnd.IntN(64)}
	m.q.Push(c, u.Written)
	m.pushed = append(m.pushed, u)
	m.usedSteps = append(m.usedSteps, steps)
	m.pushedAt += steps
}

func (m *model) publish() {
	want := m.wanted(m.wantIRQ, m.publishedAt, m.pushedAt)
	interrupt, err := m.q.Publish()
	require.NoError(m.t, err)
	require.Equal(m.t, want, interrupt, "interrupt")
	m.used = append(m.used, m.pushed...)
	m.pushed, m.publishedAt = nil, m.pushedAt
}

func (m *model) collectAll() {
	for _, want := range m.used {
		require.Equal(m.t, want, m.rig.collect(m.t))
		m.collect += m.usedSteps[0]
		m.usedSteps = m.usedSteps[1:]
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
	m.wantKick = wish{all: !m.cfg.EventIdx, one: m.cfg.EventIdx, position: m.nextAt}
}

func (m *model) disableNotifications() {
	require.NoError(m.t, m.q.DisableNotifications())
	passed := (m.nextAt - m.wantKick.position) % m.wrap
	switch {
	case !m.wantKick.one, m.cfg.Packed && passed >= m.cfg.Size:
		m.wantKick = wish{}
	case !m.cfg.Packed && passed >= 1<<15:
		m.wantKick.position = m.nextAt - 1
	} // else the position stays behind
}

func (m *model) enableInterrupts() {
	require.Equal(m.t, len(m.used) > 0, m.drv.EnableInterrupts())
	m.wantIRQ = wish{all: !m.cfg.EventIdx, one: m.cfg.EventIdx, position: m.collect}
}

func (m *model) disableInterrupts() {
	m.drv.DisableInterrupts()
	if m.cfg.Packed || !m.cfg.EventIdx {
		m.wantIRQ = wish{}
	}
}

// resolve changes the kind of memory under the live queue now and then.
func (m *model) resolve() {
	if m.rnd.IntN(4) == 0 {
		m.mem.TransfersOnly(m.rnd.IntN(2) == 0)
		require.NoError(m.t, m.q.Resolve())
	}
}
