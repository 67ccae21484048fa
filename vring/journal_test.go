package vring_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// mortal is a device whose process ends at a store of ours: to its journal, to host
// memory, or just before one.
type mortal struct {
	*rig
	t       *testing.T
	rnd     *rand.Rand
	cfg     vringtest.Config
	journal []byte
	left    int // stores

	buffers  map[uint16]buffer // by head, that the driver waits for
	added    map[uint16]buffer // not yet visible to the device
	held     []*vring.Chain
	lives    int
	executed map[uint16]bool // in this life
	again    int             // inherited chains
	done     int
}

// death is what ends a life.
type death struct{}

func (m *mortal) store() {
	if m.left--; m.left < 0 {
		panic(death{})
	}
}

// WriteAt is a store to host memory; all are transfers.
func (m *mortal) WriteAt(p []byte, addr uint64) error {
	m.store()
	return m.mem.WriteAt(p, addr)
}
func (m *mortal) ReadAt(p []byte, addr uint64) error { return m.mem.ReadAt(p, addr) }

func (m *mortal) Lend(addr uint64, n int, a vring.Access) ([]byte, error) {
	_, err := m.mem.Lend(addr, n, a)
	return nil, err
}

func newMortal(t *testing.T, cfg vringtest.Config, seed uint64) *mortal {
	r := newRig(t, cfg, true)
	return &mortal{
		rig: r, t: t, cfg: cfg, rnd: rand.New(rand.NewPCG(seed, 3)),
		journal: make([]byte, vring.JournalLen(cfg.Size)),
		buffers: map[uint16]buffer{}, added: map[uint16]buffer{},
	}
}

// live runs f until it ends or the process does, and says which.
func (m *mortal) live(f func()) (survived bool) {
	defer func() {
		if r := recover(); r != nil && r != any(death{}) {
			panic(r)
		}
	}()
	f()
	return true
}

// begin is the start of a process, which may end right then.
func (m *mortal) begin() bool {
	cfg := m.drv.Queue()
	cfg.Journal, cfg.Resume = m.journal, m.lives > 0
	m.held, m.executed = nil, map[uint16]bool{}
	return m.live(func() {
		q, err := newQueue(m, m.cfg.Packed, cfg)
		require.NoError(m.t, err)
		vring.OnStore(q.(*completing).Queue, m.store)
		m.q = q
		m.again += q.Inherited()
		m.lives++
	})
}

// resume is begin for as long as it takes.
func (m *mortal) resume(stores int) {
	for m.left = stores; !m.begin(); m.left = m.rnd.IntN(40) {
	}
}

func (m *mortal) add() {
	list := func(n int) (l []vring.Segment) {
		for range n {
			l = append(l, seg(m.rnd.Uint64()>>1, 1+m.rnd.Uint32N(1<<16)))
		}
		return l
	}
	b := buffer{readable: list(1 + m.rnd.IntN(2)), writable: list(1 + m.rnd.IntN(2))}
	var err error
	if m.cfg.Indirect > 0 && m.rnd.IntN(2) == 0 {
		b.head, err = m.drv.AddIndirect(b.readable, b.writable)
	} else {
		b.head, err = m.drv.Add(b.readable, b.writable)
	}
	if err == nil {
		m.added[b.head] = b
	}
}

func (m *mortal) kick() {
	m.drv.Kick()
	for head, b := range m.added {
		m.buffers[head] = b
		delete(m.added, head)
	}
}

func (m *mortal) next() {
	c := new(vring.Chain)
	ok, err := m.q.Next(c)
	require.NoError(m.t, err)
	if !ok {
		return
	}
	require.False(m.t, m.executed[c.Head], "life %d: chain %d comes twice", m.lives, c.Head)
	m.executed[c.Head] = true
	want, ok := m.buffers[c.Head]
	require.True(m.t, ok, "life %d: chain %d is not the driver's", m.lives, c.Head)
	requireSegments(m.t, want.readable, c.Readable, c.ReadableLen)
	requireSegments(m.t, want.writable, c.Writable, c.WritableLen)
	m.held = append(m.held, c)
}

func (m *mortal) push() {
	if len(m.held) == 0 {
		return
	}
	i := m.rnd.IntN(len(m.held))
	c := m.held[i]
	m.held = append(m.held[:i], m.held[i+1:]...)
	m.q.Push(c, uint32(c.Head)+1)
}

func (m *mortal) publish() {
	_, err := m.q.Publish()
	require.NoError(m.t, err)
}

func (m *mortal) collect() {
	for {
		u, ok, err := m.drv.Collect()
		require.NoError(m.t, err)
		if !ok {
			return
		}
		require.Contains(m.t, m.buffers, u.Head)
		require.EqualValues(m.t, uint32(u.Head)+1, u.Written)
		delete(m.buffers, u.Head)
		delete(m.executed, u.Head)
		m.done++
	}
}

func (m *mortal) notifications() {
	var err error
	if m.rnd.IntN(2) == 0 {
		_, err = m.q.EnableNotifications()
	} else {
		err = m.q.DisableNotifications()
	}
	require.NoError(m.t, err)
}

// A queue is served by one process after the other, each of which ends at one of its
// stores. Each chain is used once, and is what the driver made available.
func TestAnyEndIsSurvived(t *testing.T) {
	for _, packed := range []bool{false, true} {
		for _, size := range []int{1, 4, 5, 16} {
			if !packed && size == 5 {
				continue
			}
			for _, indirect := range []int{0, 5} {
				if size == 1 && indirect == 0 {
					continue // a chain has two descriptors at least
				}
				name := fmt.Sprintf("packed=%t size=%d indirect=%d", packed, size, indirect)
				t.Run(name, func(t *testing.T) {
					m := newMortal(t, vringtest.Config{
						Packed: packed, Size: size, Indirect: indirect, Start: nearWrap(packed, size, min(size, 3)),
						EventIdx: size == 4, FirstID: 100 * uint16(packedBit(packed)),
					}, uint64(size))
					m.run(600)
				})
			}
		}
	}
}

func packedBit(packed bool) int {
	if packed {
		return 1
	}
	return 0
}

// run lives many lives.
func (m *mortal) run(lives int) {
	steps := []func(){
		m.add, m.add, m.add, m.kick, m.kick, m.next, m.next, m.next, m.next, m.push, m.push, m.publish, m.collect, m.notifications,
	}
	m.resume(1 << 30)
	for m.lives < lives {
		m.resume(m.rnd.IntN(60))
		for m.live(steps[m.rnd.IntN(len(steps))]) {
		}
	}
	m.resume(1 << 30)
	m.kick()
	for range 10 * m.cfg.Size {
		m.next()
		m.push()
		m.publish()
		m.collect()
	}
	require.Empty(m.t, m.buffers)
	require.Equal(m.t, m.cfg.Size, m.drv.Free())
	require.Zero(m.t, m.q.InFlight())
	require.Greater(m.t, m.done, lives)
	require.Greater(m.t, m.again, lives/10, "the test does not show what it is for")
	m.t.Logf("%d lives, %d chains, %d of them again", m.lives, m.done, m.again)
}

// The same story is cut at its first store, its second, and so on.
func TestEachStore(t *testing.T) {
	eachFormat(t, func(t *testing.T, packed bool) {
		for cut := 0; ; cut++ {
			m := newMortal(t, vringtest.Config{Packed: packed, Size: 8, Indirect: 4, Start: nearWrap(packed, 8, 3)}, 1)
			m.resume(1 << 30)
			m.left = cut
			survived := m.live(func() {
				for round := range 6 {
					for range 3 {
						m.add()
					}
					m.kick()
					for range 3 {
						m.next()
					}
					m.push()
					if round%2 == 1 {
						m.push()
						m.publish()
						m.collect()
					}
				}
			})
			if survived {
				require.Greater(t, cut, 60)
				return
			}
			m.resume(1 << 30)
			for range 40 {
				m.kick()
				m.next()
				m.push()
				m.publish()
				m.collect()
			}
			require.Empty(t, m.buffers, "cut at store %d", cut)
			require.Equal(t, m.cfg.Size, m.drv.Free())
		}
	})
}

// Who goes on asks to be notified, whatever the one before had told the driver.
func TestResumedQueueIsNotified(t *testing.T) {
	eachFormat(t, func(t *testing.T, packed bool) {
		m := newMortal(t, vringtest.Config{Packed: packed, Size: 8, Indirect: 4}, 1)
		m.resume(1 << 30)
		require.NoError(t, m.q.DisableNotifications())
		m.add()
		require.False(t, m.drv.Kick())
		m.resume(1 << 30)
		more, err := m.q.EnableNotifications()
		require.NoError(t, err)
		require.True(t, more)
		m.add()
		require.True(t, m.drv.Kick())
	})
}

// A journal may hold anything. What is made of it is a queue that keeps to its memory,
// or an error.
func FuzzJournal(f *testing.F) {
	for n, mark := range []uint16{0, 0x8000} {
		for _, packed := range []bool{false, true} {
			b := make([]byte, vring.JournalLen(8))
			le := binary.LittleEndian
			le.PutUint32(b[0:], 2)  // fetched
			le.PutUint32(b[4:], 2)  // fetching
			le.PutUint32(b[12:], 1) // using
			le.PutUint16(b[16:], 1|mark)
			le.PutUint16(b[18:], 1)
			f.Add(packed, uint16(n), b)
		}
	}
	f.Fuzz(func(t *testing.T, packed bool, used uint16, data []byte) {
		const size = 8
		mem := newMemory(t, vringtest.Range{Base: 0x10000, Size: 1 << 16})
		drv, err := vringtest.New(mem, vringtest.Config{Packed: packed, Size: size, Indirect: 4})
		require.NoError(t, err)
		_, err = drv.AddIndirect([]vring.Segment{seg(1, 2)}, []vring.Segment{seg(3, 4)})
		require.NoError(t, err)
		drv.Kick()
		cfg := drv.Queue()
		cfg.Journal, cfg.Resume = make([]byte, vring.JournalLen(size)), true
		copy(cfg.Journal, data)
		if !packed {
			binary.LittleEndian.PutUint16(mem.Bytes(cfg.Device+2, 2), used)
		}
		q, err := newQueue(mem, packed, cfg)
		if err != nil {
			require.True(t, errors.Is(err, vring.ErrJournal), "%v", err)
			return
		}
		var chains []*vring.Chain
		for range 3 * size {
			c := new(vring.Chain)
			ok, err := q.Next(c)
			if !ok {
				require.True(t, err == nil || vring.IsMalformed(err) || errors.Is(err, vring.ErrUnmapped), "%v", err)
				break
			}
			chains = append(chains, c)
		}
		require.LessOrEqual(t, len(chains), size)
		for _, c := range chains {
			q.Push(c, 0)
		}
		_, err = q.Publish()
		require.NoError(t, err)
	})
}
