package epfbackend

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

const modelDisk = 1536 << 20 // bytes a second

// anyKind is a mix of all that moves differently.
func anyKind(rng *rand.Rand) virtioblk.RequestType {
	switch rng.IntN(8) {
	case 0:
		return virtioblk.TypeFlush
	case 1, 2, 3:
		return virtioblk.TypeOut
	}
	return virtioblk.TypeIn
}

// Under everything that the bus may do, what a driver finds used is done: its data is
// there, its status, and what it wrote is at the disk.
func TestOrderUnderReordering(t *testing.T) {
	for seed := range uint64(48) {
		rng := rand.New(rand.NewPCG(seed, 3))
		s := worldSetup{
			link: loopback.Gen3x2, latency: time.Duration(rng.IntN(20)) * time.Microsecond,
			packed: seed&1 != 0, indirect: seed&2 != 0, kinds: anyKind,
			depth: 1 + rng.IntN(24), size: 512 * (1 + rng.IntN(1200)),
		}
		if seed%3 == 0 {
			s.size = 4096
		}
		if seed&8 != 0 && s.indirect {
			s.fragment = 512 * (8 + rng.IntN(64))
		}
		s.link.Segment = 256 << rng.IntN(5)
		s.link.Channels = 1 + rng.IntN(6)
		s.link.Shuffle = seed + 1
		t.Run(fmt.Sprintf("%d", seed), func(t *testing.T) {
			newWorld(t, s).run(150)
		})
	}
}

// Transfers that fail cost the request that they are for, and nothing else.
func TestFailuresUnderReordering(t *testing.T) {
	wrong := errors.New("completion timeout")
	for seed := range uint64(16) {
		rng := rand.New(rand.NewPCG(seed, 4))
		faults := new(loopback.Faults)
		s := worldSetup{
			link: loopback.Gen3x2, packed: seed&1 != 0, indirect: true, kinds: anyKind,
			depth: 24, size: 4096 << (seed % 7), faults: faults,
		}
		s.link.Shuffle = seed + 1
		d := newWorld(t, s)
		d.mayFail = true
		lowest, highest := d.requests[0].addr, d.requests[d.depth-1].addr+uint64(s.size)
		faults.Transfers(func(_ bool, addr uint64, _ int) error {
			if addr >= lowest && addr < highest && addr&0xfff == 0 && rng.IntN(64) == 0 {
				return wrong
			}
			return nil
		})
		d.run(400)
		require.Positive(t, d.failed)
		require.Less(t, d.failed, 400)
		faults.Transfers(func(bool, uint64, int) error { return nil })
		d.failed = 0
		d.run(400)
		require.Zero(t, d.failed)
		require.Len(t, d.w.free, len(d.w.all), "requests")
		require.Len(t, d.w.pool.small.free, smallCount)
		require.Len(t, d.w.pool.large.free, largeCount)
		require.Len(t, d.w.freeBatches, batchCount)
	}
}

// Disk and link are busy at the same time: together they are as fast as the slower one.
func TestSequentialAtTheSpeedOfTheSlower(t *testing.T) {
	for _, disk := range []int64{modelDisk, 4 << 30} {
		for bits := range 4 {
			s := worldSetup{
				link: loopback.Gen3x2, latency: 80 * time.Microsecond, bandwidth: disk,
				packed: bits&1 != 0, indirect: true, depth: 8, size: 512 << 10, kinds: onlyReads,
			}
			if bits&2 != 0 {
				s.kinds = onlyWrites
			}
			d := newWorld(t, s)
			d.run(16)
			const n = 400
			c, took := d.costs(n)
			got := float64(n*s.size) / took.Seconds()
			bound := float64(min(s.bandwidth, s.link.Bandwidth))
			t.Logf("disk %d MiB/s, packed %v, writes %v: %.0f MiB/s, %.3f of the slower, %.1f moves in flight, at most %d",
				disk>>20, s.packed, bits&2 != 0, got/(1<<20), got/bound,
				float64(c.MovesByTime)/float64(took), c.MostMoves)
			require.GreaterOrEqual(t, got/bound, 0.95)
		}
	}
}

// What is small keeps the link busy by its number.
func TestSmallRequestsOverlap(t *testing.T) {
	for _, disk := range []int64{modelDisk, 0} {
		for bits := range 4 {
			s := worldSetup{
				link: loopback.Gen3x2, latency: 20 * time.Microsecond, bandwidth: disk,
				packed: bits&1 != 0, indirect: true, depth: 32, size: 4096, kinds: onlyReads,
			}
			if disk == 0 {
				s.latency = 0
			}
			if bits&2 != 0 {
				s.kinds = onlyWrites
			}
			d := newWorld(t, s)
			d.run(320)
			const n = 6400
			c, took := d.costs(n)
			bound := float64(s.link.Bandwidth)
			if disk > 0 {
				bound = float64(disk)
			}
			t.Logf("disk %d MiB/s, packed %v, writes %v: %.0f requests/s, %.3f of the slower, %.1f moves in flight (%.1f while busy), at most %d",
				disk>>20, s.packed, bits&2 != 0, n/took.Seconds(), float64(n*s.size)/took.Seconds()/bound,
				float64(c.MovesByTime)/float64(took), float64(c.MovesByTime)/float64(c.BusyTime), c.MostMoves)
		}
	}
}

// TestLinkTransactions prints the table of docs/performance.md.
func TestLinkTransactions(t *testing.T) {
	for _, kind := range []virtioblk.RequestType{virtioblk.TypeIn, virtioblk.TypeOut} {
		for _, size := range []int{4096, 512 << 10} {
			for _, depth := range []int{1, 32} {
				for bits := range 4 {
					s := worldSetup{
						link: loopback.Gen3x2, latency: 20 * time.Microsecond, bandwidth: modelDisk,
						packed: bits&1 != 0, indirect: bits&2 != 0, depth: depth, size: size,
						kinds: func(*rand.Rand) virtioblk.RequestType { return kind },
					}
					d := newWorld(t, s)
					d.run(4 * depth)
					n := 64 * depth
					c, took := d.costs(n)
					per := func(v int64) float64 { return float64(v) / float64(n) }
					t.Logf("%v %6d depth %2d packed %-5v indirect %-5v: moves %.2f reads %.2f writes %.2f interrupts %.2f segments %.1f in %.0f out %.0f packets %.1f; %.1f us",
						kind, size, depth, s.packed, s.indirect, per(c.Moves), per(c.Reads), per(c.Writes), per(c.Interrupts), per(c.Segments),
						per(c.FromHost), per(c.ToHost), per(c.Packets), took.Seconds()*1e6/float64(n))
				}
			}
		}
	}
}
