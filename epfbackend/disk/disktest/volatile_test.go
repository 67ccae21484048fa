package disktest

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
)

// newEngine returns an engine for a goroutine of a test.
func newEngine(t *testing.T, s disk.Store, depth int) disk.Engine {
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(bell) })
	e, err := s.NewEngine(disk.Auto, depth, bell)
	require.NoError(t, err)
	return e
}

// A disk whose power is cut keeps what a disk promises, whenever that is.
func TestVolatileKeepsItsPromises(t *testing.T) {
	for name, blocks := range map[string]int{"512": 1, "4096": 8} {
		t.Run(name, func(t *testing.T) {
			const sectors = 64
			l := NewLedger(sectors)
			image := make([]byte, sectors*SectorSize)
			for seed := range uint64(200) {
				rng := rand.New(rand.NewPCG(seed, 2))
				v := NewVolatile(image, uint32(blocks*SectorSize), seed)
				v.CutAfter(rng.IntN(400))
				var wg sync.WaitGroup
				errs := make([]error, 2)
				for i := range errs {
					e := newEngine(t, v, 8)
					load := &Load{
						Engine: e, Ledger: l, Rand: rand.New(rand.NewPCG(seed, uint64(i))),
						Depth: 8, Unit: blocks, Most: sectors / blocks / 4, Until: v.Dead,
					}
					wg.Go(func() { errs[i] = load.Run(1 << 30) })
				}
				wg.Wait()
				require.NoError(t, errs[0])
				require.NoError(t, errs[1])
				image = v.Image()
				require.NoError(t, l.Restart(image), "seed %d", seed)
			}
		})
	}
}

// What is not stable gets lost, and what is under way is torn: otherwise a test with
// this disk would show nothing.
func TestVolatileIsVolatile(t *testing.T) {
	const size = 16 * SectorSize
	fresh := make([]byte, size)
	for i := range fresh {
		fresh[i] = 1
	}
	outcomes := map[string]int{}
	for seed := range uint64(300) {
		v := NewVolatile(make([]byte, size), SectorSize, seed)
		e := newEngine(t, v, 4)
		if seed%2 == 0 {
			v.CutAfter(int(seed % 17))
		}
		e.Start(transfer(disk.Write, 0, fresh))
		for done := 0; done == 0 && !v.Dead(); {
			ios, _, err := e.Wait(false)
			require.NoError(t, err)
			done = len(ios)
		}
		v.Cut()
		sum := 0
		for _, b := range v.Image() {
			sum += int(b)
		}
		switch sum {
		case 0:
			outcomes["lost"]++
		case size:
			outcomes["kept"]++
		default:
			require.Zero(t, sum%SectorSize, "no block is torn")
			outcomes["torn"]++
		}
	}
	for _, o := range []string{"lost", "kept", "torn"} {
		require.Greater(t, outcomes[o], 20, "%v", outcomes)
	}
}

func TestVolatileRefusesParts(t *testing.T) {
	v := NewVolatile(make([]byte, 8192), 4096, 1)
	e := newEngine(t, v, 4)
	b := make([]byte, 4096)
	for _, off := range []int64{512, 4097} {
		io := transfer(disk.Write, off, b[:2048])
		run(t, e, io)
		require.Equal(t, unix.EINVAL, io.Err)
	}
	io := transfer(disk.Write, 8192, b)
	run(t, e, io)
	require.Equal(t, unix.EIO, io.Err)
}

func TestVolatileWithoutPower(t *testing.T) {
	v := NewVolatile(make([]byte, 8192), 4096, 1)
	e := newEngine(t, v, 4)
	io := transfer(disk.Read, 0, make([]byte, 4096))
	v.Cut()
	e.Start(io)
	require.Error(t, v.Flush())
	done, _, err := e.Wait(false)
	require.NoError(t, err)
	require.Empty(t, done)
	v.End()
	require.NoError(t, v.Flush())
	done, _, err = e.Wait(false)
	require.NoError(t, err)
	require.Len(t, done, 1)
	require.Equal(t, unix.EIO, io.Err)
}
