package bench_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	slot "github.com/vblk-ep/vblk-ep/epfbackend/epc/vfiouser"
	"github.com/vblk-ep/vblk-ep/internal/bench"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser/leaktest"
)

const diskSize = 8 << 20

// serve exports a disk from this process and returns its socket.
func serve(t testing.TB, path string, open disk.Options, o epfbackend.Options) string {
	t.Helper()
	leaktest.Check(t)
	open.Log, o.Log = slog.New(slog.DiscardHandler), slog.New(slog.DiscardHandler)
	store, err := disk.Open(path, open)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	fn, err := epfbackend.New(store, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, fn.Close()) })
	s, err := slot.Listen(filepath.Join(t.TempDir(), "s"), slot.Options{Log: open.Log})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, fn) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-served)
		require.NoError(t, s.Close())
	})
	return s.Path()
}

func connect(t testing.TB, socket string, s bench.Setup) *bench.Target {
	t.Helper()
	target, err := bench.Connect(t.Context(), socket, s)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, target.Close()) })
	return target
}

func job(s bench.Setup) bench.Job {
	return bench.Job{ReadMix: 100, Random: true, Block: s.Block, Depth: s.Depth, Seed: 1, Runtime: 100 * time.Millisecond}
}

// work runs a job that does both reads and writes, if it is a mixed one: longer, where
// the machine is so busy that it takes longer.
func work(t testing.TB, target *bench.Target, j bench.Job) *bench.Result {
	t.Helper()
	for ; ; j.Runtime *= 4 {
		require.Less(t, j.Runtime, time.Minute, "it does nothing")
		r, err := bench.Run(t.Context(), target, j, nil)
		require.NoError(t, err)
		if r.Requests > 100 {
			return r
		}
	}
}

// Each way to drive the device writes, reads and finds everything again.
func TestVerifiedRuns(t *testing.T) {
	base := bench.Setup{Queues: 1, Depth: 16, Block: 4096}
	for name, c := range map[string]struct {
		change  func(s *bench.Setup)
		options epfbackend.Options
	}{
		"split":                     {func(*bench.Setup) {}, epfbackend.Options{}},
		"packed":                    {func(s *bench.Setup) { s.Packed = true }, epfbackend.Options{Rings: epfbackend.RingPacked}},
		"polled":                    {func(s *bench.Setup) { s.HiPri = true }, epfbackend.Options{}},
		"small batches":             {func(s *bench.Setup) { s.Batch = 3 }, epfbackend.Options{}},
		"direct":                    {func(s *bench.Setup) { s.Direct = true }, epfbackend.Options{}},
		"packed, direct":            {func(s *bench.Setup) { s.Packed, s.Direct = true, true }, epfbackend.Options{Rings: epfbackend.RingBoth}},
		"queues":                    {func(s *bench.Setup) { s.Queues = 3 }, epfbackend.Options{Queues: 3}},
		"trap-free":                 {func(*bench.Setup) {}, epfbackend.Options{TrapFree: true}},
		"trap-free, queues, polled": {func(s *bench.Setup) { s.Queues, s.HiPri = 2, true }, epfbackend.Options{TrapFree: true, Queues: 2}},
		"trap-free, queues":         {func(s *bench.Setup) { s.Queues = 2 }, epfbackend.Options{TrapFree: true, Queues: 2}},
		"trap-free, packed":         {func(s *bench.Setup) { s.Packed = true }, epfbackend.Options{TrapFree: true}},
		"large":                     {func(s *bench.Setup) { s.Block, s.Depth = 128<<10, 4 }, epfbackend.Options{}},
		"sectors":                   {func(s *bench.Setup) { s.Block = 512 }, epfbackend.Options{}},
	} {
		t.Run(name, func(t *testing.T) {
			s := base
			c.change(&s)
			socket := serve(t, blktest.File(t, diskSize), disk.Options{}, c.options)
			target := connect(t, socket, s)
			require.EqualValues(t, diskSize, target.Capacity)
			require.Equal(t, os.Getpid(), target.Server)
			for _, random := range []bool{true, false} {
				for _, mix := range []int{0, 50} {
					j := job(s)
					j.Random, j.ReadMix, j.Verify = random, mix, true
					j.Seed = uint64(mix + 1)
					r := work(t, target, j)
					require.NotZero(t, *r.Checked)
					require.NotZero(t, r.Writes)
					require.Equal(t, mix > 0, r.Reads > 0)
				}
			}
		})
	}
}

func TestResultAddsUp(t *testing.T) {
	s := bench.Setup{Queues: 2, Depth: 8, Block: 4096}
	target := connect(t, serve(t, "null:1G", disk.Options{}, epfbackend.Options{Queues: 2}), s)
	j := job(s)
	j.RampTime, j.Runtime = 100*time.Millisecond, 500*time.Millisecond
	r := work(t, target, j)
	require.Zero(t, r.Writes)
	require.Equal(t, r.Reads, r.Requests)
	require.GreaterOrEqual(t, r.Runtime, j.Runtime)
	require.InEpsilon(t, float64(r.Requests)/r.Runtime.Seconds(), r.IOPS, 0.001)
	require.InEpsilon(t, r.IOPS*4096, r.Bytes, 0.001)
	l := r.Latency
	for _, pair := range [][2]int64{{1, l.Min}, {l.Min, l.P50}, {l.P50, l.P90}, {l.P90, l.P95}, {l.P95, l.P99}, {l.P99, l.P999}, {l.P999, l.P9999}, {l.P9999, l.Max}} {
		require.LessOrEqual(t, pair[0], pair[1])
	}
	// Little's law: what is in flight is rate times latency. Requests are resubmitted
	// as soon as they are done, so it is about the depth; not exactly, because a
	// machine that stops for a while does so within some requests only.
	inFlight := r.IOPS * l.Mean / 1e9 / float64(s.Queues*s.Depth)
	require.Greater(t, inFlight, 0.4)
	require.Less(t, inFlight, 2.5)
	require.NotNil(t, r.ServerCPU, "the server is this process")
	cores := r.IOPS * (*r.ServerCPU + r.ClientCPU) / 1e9
	require.Greater(t, cores, 0.01)
	require.Less(t, cores, float64(runtime.NumCPU())*1.1)
	require.Nil(t, r.Checked)
	require.NotZero(t, r.Kicks)
}

// A disk that forgets is found out.
func TestVerifyFails(t *testing.T) {
	s := bench.Setup{Queues: 1, Depth: 8, Block: 4096}
	target := connect(t, serve(t, "null:4M", disk.Options{}, epfbackend.Options{}), s)
	j := job(s)
	j.ReadMix, j.Verify = 0, true
	_, err := bench.Run(t.Context(), target, j, nil)
	require.ErrorIs(t, err, bench.ErrVerify)
}

func TestDiskThatFails(t *testing.T) {
	s := bench.Setup{Queues: 1, Depth: 8, Block: 4096}
	path := blktest.File(t, diskSize)
	target := connect(t, serve(t, path, disk.Options{Direct: disk.DirectOff}, epfbackend.Options{}), s)
	require.NoError(t, os.Truncate(path, 0))
	j := job(s)
	_, err := bench.Run(t.Context(), target, j, nil)
	require.ErrorIs(t, err, bench.ErrIO)
	require.ErrorContains(t, err, "IN of 4096 bytes at ")
}

func TestNothingIsWrittenToReadOnlyDisks(t *testing.T) {
	s := bench.Setup{Queues: 1, Depth: 1, Block: 4096}
	target := connect(t, serve(t, blktest.File(t, diskSize), disk.Options{ReadOnly: true}, epfbackend.Options{}), s)
	require.True(t, target.ReadOnly)
	j := job(s)
	j.ReadMix = 99
	_, err := bench.Run(t.Context(), target, j, nil)
	require.ErrorIs(t, err, bench.ErrTarget)
}

func TestSetupsThatDoNotFit(t *testing.T) {
	socket := serve(t, "null:1G", disk.Options{BlockSize: 4096}, epfbackend.Options{QueueSize: 64})
	for want, s := range map[string]bench.Setup{
		"it has 1 queues, not 2: choose fewer":    {Queues: 2, Depth: 1, Block: 4096},
		"blocks have 4096 bytes, and bs is 512":   {Queues: 1, Depth: 1, Block: 512},
		"room for 64 requests, and iodepth is 65": {Queues: 1, Depth: 65, Block: 4096},
		"room for 21 requests, and iodepth is 22": {Queues: 1, Depth: 22, Block: 4096, Direct: true},
		"offers no packed ring":                   {Queues: 1, Depth: 1, Block: 4096, Packed: true},
	} {
		_, err := bench.Connect(t.Context(), socket, s)
		require.ErrorIs(t, err, bench.ErrTarget, want)
		require.ErrorContains(t, err, want)
	}
	connect(t, socket, bench.Setup{Queues: 1, Depth: 64, Block: 4096})
}

func TestRunEndsEarly(t *testing.T) {
	s := bench.Setup{Queues: 1, Depth: 8, Block: 4096}
	target := connect(t, serve(t, "null:1G", disk.Options{}, epfbackend.Options{}), s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	j := job(s)
	j.Runtime = time.Hour
	r, err := bench.Run(ctx, target, j, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotZero(t, r.Requests)
	require.Less(t, r.Runtime, time.Minute)
}

// In a steady state neither side allocates anything for a request.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	for name, s := range map[string]bench.Setup{
		"split":  {Queues: 1, Depth: 32, Block: 4096},
		"packed": {Queues: 1, Depth: 32, Block: 4096, Packed: true},
		"polled": {Queues: 1, Depth: 32, Block: 4096, HiPri: true},
		"alone":  {Queues: 1, Depth: 1, Block: 4096},
	} {
		for _, verify := range []bool{false, true} {
			o := epfbackend.Options{Rings: epfbackend.RingBoth}
			target := connect(t, serve(t, blktest.File(t, diskSize), disk.Options{}, o), s)
			j := job(s)
			j.Verify = verify
			j.ReadMix = 50
			j.RampTime, j.Runtime = 50*time.Millisecond, 400*time.Millisecond
			run := func() (mallocs, requests uint64) {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				r, err := bench.Run(t.Context(), target, j, nil)
				require.NoError(t, err)
				runtime.ReadMemStats(&after)
				return after.Mallocs - before.Mallocs, r.Requests
			}
			run()
			mallocs, requests := run()
			t.Logf("%s, verify %v: %d allocations, %d requests", name, verify, mallocs, requests)
			// A run allocates something to begin with, and the runtime now and then.
			require.Less(t, mallocs, 100+requests/20, "%s, verify %v: %d requests", name, verify, requests)
		}
	}
}
