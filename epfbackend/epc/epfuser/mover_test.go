package epfuser

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
	"github.com/vblk-ep/vblk-ep/internal/eventfd"
)

// modelEngine checks what it is asked for against the limits, and moves the bytes of
// transfers that are in flight in any order.
type modelEngine struct {
	t      *testing.T
	random *rand.Rand
	limits limits
	host   []byte
	base   []byte
	room   int // transfers in flight at most

	prepared, flying []modelTransfer
	fail             func() error
	transfers        int
	inFlight         map[int]bool
}

type modelTransfer struct {
	tag      int
	segments []epfdev.Segment
	toHost   bool
}

func (e *modelEngine) start(tag int, segments []epfdev.Segment, toHost bool) bool {
	if len(e.prepared)+len(e.flying) == e.room {
		return false
	}
	require.False(e.t, e.inFlight[tag], "one transfer of a move at a time")
	e.inFlight[tag] = true
	require.NotEmpty(e.t, segments)
	require.LessOrEqual(e.t, len(segments), e.limits.segments)
	bytes := 0
	for _, s := range segments {
		require.NotZero(e.t, s.Length)
		require.Zero(e.t, (s.Addr|uint64(s.Offset)|uint64(s.Length))%e.limits.align)
		bytes += int(s.Length)
	}
	require.LessOrEqual(e.t, bytes, e.limits.bytes)
	e.prepared = append(e.prepared, modelTransfer{tag, segments, toHost})
	return true
}

func (e *modelEngine) submit() error {
	for _, t := range e.prepared {
		t.segments = slices.Clone(t.segments) // they may be reused from now on
		e.flying = append(e.flying, t)
	}
	e.prepared = e.prepared[:0]
	return nil
}

func (e *modelEngine) holds() bool { return false }

func (e *modelEngine) copy(addr uint64, p []byte, toHost bool) error {
	if toHost {
		copy(e.host[addr:], p)
	} else {
		copy(p, e.host[addr:])
	}
	return nil
}

func (e *modelEngine) reap(ended func(tag int, err error)) error {
	for n := e.random.IntN(len(e.flying) + 1); n > 0; n-- {
		i := e.random.IntN(len(e.flying))
		t := e.flying[i]
		e.flying = slices.Delete(e.flying, i, i+1)
		e.transfers++
		var err error
		if e.fail != nil {
			err = e.fail()
		}
		for _, s := range t.segments {
			_ = e.copy(s.Addr, e.base[s.Offset:s.Offset+s.Length], t.toHost)
		}
		delete(e.inFlight, t.tag)
		ended(t.tag, err)
	}
	return nil
}

func (e *modelEngine) close(inFlight func() int, ended func(tag int, err error)) error {
	for _ = e.submit(); inFlight() > 0; _ = e.submit() {
		_ = e.reap(ended)
	}
	require.Empty(e.t, e.flying)
	return nil
}

// newModel makes a mover with limits of any kind.
func newModel(t *testing.T, seed uint64) (*mover, *modelEngine, *rand.Rand) {
	random := rand.New(rand.NewPCG(seed, 3))
	l := limits{segments: 1 + random.IntN(5), align: 1 << random.IntN(4), bytes: 512 << random.IntN(4)}
	e := &modelEngine{
		t: t, random: random, limits: l, host: make([]byte, 1<<16), base: make([]byte, 1<<16),
		room: 1 + random.IntN(6), inFlight: map[int]bool{},
	}
	for i := range e.host {
		e.host[i], e.base[i] = byte(random.Uint32()), byte(random.Uint32())
	}
	return newMover(e, l, 1+random.IntN(8), e.base, newBell(t)), e, random
}

func newBell(t *testing.T) int {
	bell, err := eventfd.New()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Close(bell)) })
	return bell
}

// rung says whether the mover's bell has rung since it was last asked.
func rung(t *testing.T, m *mover) bool {
	var b [8]byte
	_, err := unix.Read(m.bell, b[:])
	if err != nil {
		require.ErrorIs(t, err, unix.EAGAIN)
	}
	return err == nil
}

// moves returns moves that do not overlap, and what host and local memory are to be
// in the end.
func moves(random *rand.Rand, e *modelEngine) (all []*epc.Move, host, local []byte) {
	host, local = slices.Clone(e.host), slices.Clone(e.base)
	at, addr := 0, 0
	for len(all) < 20 {
		v := &epc.Move{Dir: epc.Direction(random.IntN(2)), Tag: len(all)}
		for range 1 + random.IntN(8) {
			n := 1 + random.IntN(300)
			if random.IntN(2) == 0 {
				n = (n + 63) &^ 63
				at, addr = (at+63)&^63, (addr+63)&^63
			}
			if at+n > len(local) || addr+n > len(host) {
				break
			}
			v.Parts = append(v.Parts, epc.Part{Addr: uint64(addr), Local: e.base[at : at+n : at+n]})
			if v.Dir == epc.ToHost {
				copy(host[addr:addr+n], local[at:])
			} else {
				copy(local[at:at+n], host[addr:])
			}
			at, addr = at+n+random.IntN(70), addr+n+random.IntN(70)
		}
		all = append(all, v)
	}
	return all, host, local
}

// Whatever the limits, each byte arrives where it should, and each move ends once.
func TestMoverProperty(t *testing.T) {
	transfers := 0
	for seed := range uint64(200) {
		m, e, random := newModel(t, seed)
		all, host, local := moves(random, e)
		ended := map[*epc.Move]bool{}
		collect := func() {
			for _, v := range m.Completed() {
				require.NoError(t, v.Err)
				require.False(t, ended[v], "it ends once")
				ended[v] = true
			}
		}
		for _, v := range all {
			m.Start(v)
			if random.IntN(3) == 0 {
				require.NoError(t, m.Submit())
				collect()
			}
		}
		require.NoError(t, m.Submit())
		for n := 0; len(ended) < len(all); n++ {
			require.Less(t, n, 100000, "it comes to an end")
			collect()
		}
		require.NoError(t, m.Close())
		require.Equal(t, host, e.host)
		require.Equal(t, local, e.base)
		transfers += e.transfers
	}
	require.Greater(t, transfers, 4000, "not all was copied by the processor")
}

// A transfer that fails ends its move and no other; closing waits for what is in
// flight and no more.
func TestMoverFailsAndCloses(t *testing.T) {
	broken := errors.New("the bus failed it")
	failed, fine := 0, 0
	for seed := range uint64(300) {
		m, e, random := newModel(t, seed)
		all, _, _ := moves(random, e)
		e.fail = func() error {
			if random.IntN(4) == 0 {
				return broken
			}
			return nil
		}
		for _, v := range all {
			m.Start(v)
		}
		require.NoError(t, m.Submit())
		for range random.IntN(40) {
			for _, v := range m.Completed() {
				if v.Err != nil {
					require.ErrorIs(t, v.Err, broken)
					failed++
				} else {
					fine++
				}
			}
		}
		require.NoError(t, m.Close())
		require.Zero(t, m.busy())
	}
	require.NotZero(t, failed)
	require.NotZero(t, fine)
}

// A move that needs no transfer ends at once, and is told of like every other.
func TestMoveWithoutTransfer(t *testing.T) {
	m, e, _ := newModel(t, 1)
	m.limits.align = 8
	copied := &epc.Move{Dir: epc.ToHost, Parts: []epc.Part{{Addr: 5, Local: e.base[3:4]}}}
	foreign := &epc.Move{Parts: []epc.Part{{Local: make([]byte, 64)}}}
	m.Start(copied)
	m.Start(foreign)
	require.NoError(t, m.Submit())
	require.True(t, rung(t, m))
	require.Equal(t, []*epc.Move{copied, foreign}, m.Completed())
	require.False(t, rung(t, m))
	require.NoError(t, copied.Err)
	require.Equal(t, e.base[3], e.host[5])
	require.ErrorIs(t, foreign.Err, errLocal)
	require.NoError(t, m.Close())
}
