package loopback

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

const hostBase, hostSize = 1 << 20, 16 << 20

// bench is an engine with the memory of a host, and one mover.
type bench struct {
	*Engine
	clock *Clock
	mem   *vringtest.Memory
	local []byte
	bell  int
	mover *mover
}

func newBench(t *testing.T, link Link, faults *Faults, depth int) *bench {
	mem, err := vringtest.NewMemory(vringtest.Range{Base: hostBase, Size: hostSize})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mem.Close()) })
	b := &bench{clock: NewClock(), mem: mem, local: make([]byte, hostSize)}
	b.Engine = NewEngine(b.clock, link)
	host := new(hostMemory)
	if faults == nil {
		faults = new(Faults)
	}
	host.init(faults, b.Engine)
	b.host = host
	require.NoError(t, host.add(rc.RegionOf(mem.Regions()[0])))
	t.Cleanup(func() { require.NoError(t, host.close()) })
	b.bell, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(b.bell) })
	b.mover = b.newMover(depth, b.local, b.bell)
	return b
}

func (b *bench) part(addr uint64, off, n int) epc.Part {
	return epc.Part{Addr: hostBase + addr, Local: b.local[off : off+n]}
}

// run starts moves and lets them end. It returns how long that took.
func (b *bench) run(t *testing.T, moves ...*epc.Move) time.Duration {
	start := b.clock.Now()
	for _, m := range moves {
		b.mover.Start(m)
	}
	require.NoError(t, b.mover.Submit())
	ended := 0
	for ended < len(moves) {
		require.True(t, b.clock.Step(), "%d of %d have ended", ended, len(moves))
		ended += len(b.mover.Completed())
	}
	require.True(t, b.idle())
	return b.clock.Now() - start
}

func TestLinkIsShared(t *testing.T) {
	const n, size = 8, 1 << 20
	for _, dir := range []epc.Direction{epc.ToHost, epc.FromHost} {
		b := newBench(t, Gen3x2, nil, n)
		moves := make([]*epc.Move, n)
		for i := range moves {
			moves[i] = &epc.Move{Dir: dir, Parts: []epc.Part{b.part(uint64(i*size), i*size, size)}}
		}
		least := time.Duration(n * size * int64(time.Second) / Gen3x2.Bandwidth)
		took := b.run(t, moves...)
		require.GreaterOrEqual(t, took, least-least/50) // segments are rounded
		require.Less(t, took, least+least/50)
		c := b.Traffic()
		require.EqualValues(t, n, c.Moves)
		require.EqualValues(t, n*size/4096, c.Segments)
		require.Equal(t, n, c.MostMoves)
	}
}

func TestReadsTakeARoundTripAndOverlap(t *testing.T) {
	b := newBench(t, Gen3x2, nil, 4)
	copy(b.mem.Bytes(hostBase, 64), "from the host")
	var moves []*epc.Move
	for i := range 4 {
		moves = append(moves, &epc.Move{Parts: []epc.Part{b.part(0, 64*i, 64)}})
	}
	took := b.run(t, moves...)
	require.GreaterOrEqual(t, took, Gen3x2.RoundTrip)
	require.Less(t, took, 2*Gen3x2.RoundTrip)
	require.True(t, bytes.HasPrefix(b.local[3*64:], []byte("from the host")))
}

func TestSegmentsKeepToTheirLimits(t *testing.T) {
	link := Gen3x2
	link.Segment, link.Boundary = 1024, 4096
	b := newBench(t, link, nil, 1)
	b.run(t, &epc.Move{Dir: epc.ToHost, Parts: []epc.Part{b.part(4096-100, 0, 1200), b.part(0, 4096, 0), b.part(8192, 5000, 1)}})
	require.EqualValues(t, 4, b.Traffic().Segments) // 100, 1024, 76, 1
}

// Whatever is shuffled, the bytes of a part arrive before those of the next.
func TestPartsArriveInOrder(t *testing.T) {
	for seed := range uint64(6) {
		link := Gen3x2
		link.Segment, link.Shuffle = 256, seed+1
		b := newBench(t, link, nil, 4)
		for i := range b.local {
			b.local[i] = 1
		}
		var moves []*epc.Move
		for i := range uint64(4) {
			m := &epc.Move{Dir: epc.ToHost}
			for p := range uint64(8) { // in no order of addresses
				m.Parts = append(m.Parts, b.part(i<<16|(p*5%8)<<12, int(p)<<12, 700))
			}
			moves = append(moves, m)
		}
		swapped := false
		first := make([]bool, 4)
		b.clock.OnStep(func() {
			for i := range uint64(4) {
				came := func(p uint64, at int) bool {
					return b.mem.Bytes(hostBase+i<<16|(p*5%8)<<12, 700)[at] == 1
				}
				for p := range uint64(7) {
					require.False(t, came(p+1, 0) && !came(p, 699), "part %d before the end of part %d", p+1, p)
				}
				first[i] = came(0, 0)
				swapped = swapped || i > 0 && first[i] && !first[i-1]
			}
		})
		b.run(t, moves...)
		if seed == 0 {
			require.True(t, swapped, "moves keep their order, too")
		}
	}
}

func TestMovesThatFail(t *testing.T) {
	wrong := errors.New("completion timeout")
	faults := new(Faults)
	faults.Transfers(func(_ bool, addr uint64, _ int) error {
		if addr == hostBase+8192 {
			return wrong
		}
		return nil
	})
	b := newBench(t, Gen3x2, faults, 2) // fewer than there are moves
	good := &epc.Move{Parts: []epc.Part{b.part(0, 0, 4096)}}
	bad := &epc.Move{Parts: []epc.Part{b.part(0, 0, 16384)}}
	nowhere := &epc.Move{Dir: epc.ToHost, Parts: []epc.Part{b.part(hostSize-2048, 0, 4096)}}
	foreign := &epc.Move{Parts: []epc.Part{{Addr: hostBase, Local: make([]byte, 64)}}}
	empty := new(epc.Move)
	b.run(t, bad, good, nowhere, foreign, empty)
	require.NoError(t, good.Err)
	require.NoError(t, empty.Err)
	require.ErrorIs(t, bad.Err, wrong)
	require.ErrorIs(t, nowhere.Err, vring.ErrUnmapped)
	require.ErrorIs(t, foreign.Err, ErrLocal)
	b.run(t, bad) // what failed before may be started again
	require.ErrorIs(t, bad.Err, wrong)
}

// After Close no memory is touched.
func TestCloseWithMovesInFlight(t *testing.T) {
	for _, runs := range []bool{false, true} {
		link := Gen3x2
		link.Shuffle = 1
		b := newBench(t, link, nil, 8)
		if runs {
			b.clock.Run()
			defer b.clock.Stop()
		}
		for i := range b.local {
			b.local[i] = 1
		}
		for i := range 20 {
			b.mover.Start(&epc.Move{Dir: epc.ToHost, Parts: []epc.Part{b.part(uint64(i)<<16, 0, 1<<16)}})
		}
		require.NoError(t, b.mover.Submit())
		require.NoError(t, b.mover.Close())
		require.True(t, b.idle())
		clear(b.mem.Bytes(hostBase, hostSize))
		for !runs && b.clock.Step() {
		}
		time.Sleep(time.Millisecond)
		require.Zero(t, bytes.Count(b.mem.Bytes(hostBase, hostSize), []byte{1}))
	}
}

// The bell rings for whatever ends while nobody looks.
func TestBell(t *testing.T) {
	b := newBench(t, Gen3x2, nil, 4)
	var p [8]byte
	for range 3 {
		b.mover.Start(&epc.Move{Parts: []epc.Part{b.part(0, 0, 64)}})
		_, err := unix.Read(b.bell, p[:])
		require.ErrorIs(t, err, unix.EAGAIN)
		require.NoError(t, b.mover.Submit())
		for b.clock.Step() {
		}
		_, err = unix.Read(b.bell, p[:])
		require.NoError(t, err)
		require.Len(t, b.mover.Completed(), 1)
	}
}
