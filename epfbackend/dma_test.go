package epfbackend

import (
	"errors"
	"fmt"
	"math/bits"
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
// there, its status, and what it wrote is at the disk. (It has been seen to fail with a
// push before the end of the move, with a status byte that does not wait for other
// pieces, with a batch of them that is not waited for, and with a used index before its
// entries.)
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
		require.Equal(t, smallCount, d.w.pool.small.count())
		require.Equal(t, largeCount, d.w.pool.large.count())
		require.Len(t, d.w.freeBatches, batchCount)
	}
}

// count returns how many buffers are free.
func (s *shelf) count() (n int) {
	for _, free := range s.free {
		n += bits.OnesCount64(free)
	}
	return n
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

// What is small keeps disk and link busy by its number.
func TestSmallRequestsOverlap(t *testing.T) {
	for bits := range 8 {
		s := worldSetup{
			link: loopback.Gen3x2, latency: 20 * time.Microsecond, bandwidth: modelDisk,
			packed: bits&1 != 0, indirect: true, depth: 32, size: 4096, kinds: onlyReads,
		}
		if bits&2 != 0 {
			s.kinds = onlyWrites
		}
		name := "disk of 1.5 GiB/s"
		if bits&4 != 0 { // so that the link is what it takes
			s.latency, s.bandwidth, name = 0, 0, "no disk"
		}
		d := newWorld(t, s)
		d.run(320)
		const n = 6400
		atDisk := d.disk.byTime
		c, took := d.costs(n)
		onLink := float64(c.MovesByTime) / float64(c.BusyTime)
		either := float64(c.MovesByTime+d.disk.byTime-atDisk) / float64(took)
		t.Logf("%s, packed %v, writes %v: %.0f requests/s; in flight: %.1f moves while there are any, %.1f on average, at most %d; "+
			"%.1f at the disk and on the link together; %.2f of the time the worker waits for %.2f transfers a request",
			name, s.packed, bits&2 != 0, n/took.Seconds(), onLink, float64(c.MovesByTime)/float64(took), c.MostMoves, either,
			float64(c.WaitTime)/float64(took), float64(c.Reads)/n)
		if s.bandwidth == 0 {
			require.Greater(t, onLink, 4.)
		} else {
			require.Greater(t, either, 4.)
			require.Greater(t, float64(n*s.size)/took.Seconds()/float64(s.bandwidth), 0.7)
		}
	}
}

// What bounds small writes is that the worker's looks at the ring wait for data that moves
// the same way. Where they do not, the disk is the limit, as it is for reads.
func TestSmallWritesWaitForLooks(t *testing.T) {
	for _, interleaves := range []bool{false, true} {
		s := worldSetup{
			link: loopback.Gen3x2, latency: 20 * time.Microsecond, bandwidth: modelDisk,
			indirect: true, depth: 32, size: 4096, kinds: onlyWrites,
		}
		s.link.Interleaves = interleaves
		d := newWorld(t, s)
		d.run(320)
		const n = 6400
		c, took := d.costs(n)
		ofDisk := float64(n*s.size) / took.Seconds() / float64(s.bandwidth)
		look := c.WaitTime / time.Duration(c.Reads)
		t.Logf("interleaves %v: %.3f of the disk; %.2f transfers a request, each waited for for %v, %.2f of the time",
			interleaves, ofDisk, float64(c.Reads)/n, look, float64(c.WaitTime)/float64(took))
		if interleaves {
			require.Greater(t, ofDisk, 0.95)
		} else {
			require.Greater(t, look, 3*s.link.RoundTrip/2)
		}
	}
}

// In a steady state nobody allocates, neither the worker nor the model.
func TestDMAAllocatesNothing(t *testing.T) {
	for bits := range 4 {
		s := worldSetup{link: loopback.Gen3x2, packed: bits&1 != 0, indirect: true, depth: 16, size: 4096, kinds: anyKind}
		if bits&2 != 0 {
			s.size = 64 << 10
		}
		d := newWorld(t, s)
		d.run(1000)
		require.Zero(t, testing.AllocsPerRun(10, func() { d.run(50) }), "packed %v, %d bytes", s.packed, s.size)
	}
}

// linkCost is what a request may take of the link at most.
type linkCost struct{ moves, reads, writes float64 }

// What a request takes of the link is as docs/performance.md has it.
func TestLinkTransactions(t *testing.T) {
	type load struct {
		kind  virtioblk.RequestType
		size  int
		depth int
	}
	in, out := virtioblk.TypeIn, virtioblk.TypeOut
	most := map[load][2]linkCost{ // split, packed
		{in, 4096, 1}:       {{1, 7, 3}, {1, 6, 3}},
		{in, 4096, 32}:      {{2, 2, 1}, {2, 2, 1}},
		{in, 512 << 10, 1}:  {{4, 7, 3}, {4, 6, 3}},
		{in, 512 << 10, 8}:  {{2.1, 7, 4}, {2.1, 6, 4}},
		{out, 4096, 1}:      {{1, 6, 4}, {1, 5, 4}},
		{out, 4096, 32}:     {{2, 2, 1}, {2, 2, 1}},
		{out, 512 << 10, 1}: {{4.1, 6.1, 4.1}, {4.1, 5.1, 4.1}},
		{out, 512 << 10, 8}: {{2.1, 6, 5}, {2.1, 5, 5}},
	}
	for _, kind := range []virtioblk.RequestType{in, out} {
		for _, l := range []load{{kind, 4096, 1}, {kind, 4096, 32}, {kind, 512 << 10, 1}, {kind, 512 << 10, 8}} {
			for format, bound := range most[l] {
				s := worldSetup{
					link: loopback.Gen3x2, latency: 20 * time.Microsecond, bandwidth: modelDisk,
					packed: format == 1, indirect: true, depth: l.depth, size: l.size,
					kinds: func(*rand.Rand) virtioblk.RequestType { return kind },
				}
				d := newWorld(t, s)
				d.run(4 * l.depth)
				n := 64 * l.depth
				c, took := d.costs(n)
				per := func(v int64) float64 { return float64(v) / float64(n) }
				t.Logf("%v %6d, depth %2d, packed %-5v: %.2f moves, %.2f reads, %.2f writes, %.0f bytes in, %.0f out, %.1f packets; %.1f µs",
					kind, l.size, l.depth, s.packed, per(c.Moves), per(c.Reads), per(c.Writes),
					per(c.FromHost), per(c.ToHost), per(c.Packets), took.Seconds()*1e6/float64(n))
				require.LessOrEqual(t, per(c.Moves), bound.moves)
				require.LessOrEqual(t, per(c.Reads), bound.reads)
				require.LessOrEqual(t, per(c.Writes), bound.writes)
			}
		}
	}
}

// BenchmarkDMA is all that a worker, its host and the model of the link compute for a
// request of 4 KiB that moves by DMA. The model has the larger part of it.
func BenchmarkDMA(b *testing.B) {
	for _, packed := range []bool{false, true} {
		for _, depth := range []int{1, 32} {
			for _, kinds := range []func(*rand.Rand) virtioblk.RequestType{onlyReads, onlyWrites} {
				s := worldSetup{link: loopback.Gen3x2, packed: packed, indirect: true, depth: depth, size: 4096, kinds: kinds}
				b.Run(fmt.Sprintf("packed=%v/%v/depth=%d", packed, kinds(nil), depth), func(b *testing.B) {
					d := newWorld(b, s)
					d.run(320)
					b.ReportAllocs()
					b.ResetTimer()
					c, took := d.costs(b.N)
					b.ReportMetric(float64(b.N)/took.Seconds(), "model-IOPS")
					b.ReportMetric(float64(c.Moves+c.Reads+c.Writes)/float64(b.N), "transactions/op")
				})
			}
		}
	}
}
