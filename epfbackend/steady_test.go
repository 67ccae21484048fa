package epfbackend_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// closedLoop keeps depth requests in flight, and allocates nothing.
type closedLoop struct {
	q    *rc.Queue
	list []*rc.Request
	done []*rc.Request
	rng  *rand.Rand
	area uint64 // in blocks of 4 KiB
	spin bool   // polls for completions instead of waiting for interrupts
}

func newClosedLoop(t testing.TB, r *rig, depth int, kind virtioblk.RequestType) *closedLoop {
	l := &closedLoop{q: r.q, done: make([]*rc.Request, 0, depth), rng: rand.New(rand.NewPCG(1, 1))}
	l.area = uint64(r.store.Info().Size) / 4096
	for range depth {
		q := r.request(4096)
		q.Type = kind
		l.list = append(l.list, q)
	}
	return l
}

// run executes n requests.
func (l *closedLoop) run(t testing.TB, n int) {
	submitted := 0
	submit := func(list []*rc.Request) {
		for _, q := range list {
			if submitted == n {
				break
			}
			q.Sector = l.rng.Uint64N(l.area) * 8
			if err := l.q.Submit(q); err != nil {
				t.Fatal(err)
			}
			submitted++
		}
		if err := l.q.Kick(); err != nil {
			t.Fatal(err)
		}
	}
	submit(l.list)
	for completed := 0; completed < n; {
		var err error
		for l.done = l.done[:0]; err == nil && len(l.done) == 0; {
			if l.spin {
				l.done, err = l.q.Poll(l.done)
			} else {
				l.done, err = l.q.Wait(l.done, patience)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		completed += len(l.done)
		for _, q := range l.done {
			if q.Status != virtioblk.StatusOK {
				t.Fatal(q.Status)
			}
		}
		submit(l.done)
	}
}

// In a steady state no request allocates anything, on either side of the link.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	const warmUp, n = 2000, 10000
	for name, s := range map[string]setup{
		"null":                     {path: "null:1G"},
		"file":                     {options: epfbackend.Options{Engine: disk.URing}},
		"file, plain":              {options: epfbackend.Options{Engine: disk.Plain}},
		"file, transfers":          {options: epfbackend.Options{Engine: disk.URing}, faults: transfersOnly()},
		"null, indirect":           {path: "null:1G", queue: rc.QueueConfig{Indirect: 4}},
		"null, transfers, starved": {path: "null:1G", faults: transfersOnly()},
		"file, DMA":                {options: epfbackend.Options{Engine: disk.URing}, link: &loopback.Gen3x2},
		"null, DMA, packed":        {path: "null:1G", options: epfbackend.Options{Rings: epfbackend.RingPacked}, link: &loopback.Gen3x2},
	} {
		for _, kind := range []virtioblk.RequestType{virtioblk.TypeIn, virtioblk.TypeOut, virtioblk.TypeFlush, virtioblk.TypeGetID} {
			if s.path == "" && kind == virtioblk.TypeFlush {
				continue // slow
			}
			t.Run(fmt.Sprintf("%s/%v", name, kind), func(t *testing.T) {
				r := newRig(t, s)
				l := newClosedLoop(t, r, 32, kind)
				l.run(t, warmUp)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				l.run(t, n)
				runtime.ReadMemStats(&after)
				// The runtime itself allocates now and then.
				require.Less(t, after.Mallocs-before.Mallocs, uint64(n/100), "allocations in %d requests", n)
			})
		}
	}
}

// BenchmarkRead is a driver and the function in one process, each on a thread of
// its own.
func BenchmarkRead(b *testing.B) {
	for _, path := range []string{"null:1G", ""} {
		for _, poll := range []epfbackend.Poll{epfbackend.PollOff, epfbackend.PollAuto, epfbackend.PollAlways} {
			for _, spin := range []bool{false, true} {
				for _, rings := range []epfbackend.RingFormats{epfbackend.RingSplit, epfbackend.RingPacked} {
					for _, depth := range []int{1, 32, 128} {
						disk, format := "null", "split"
						if path == "" {
							disk = "file"
						}
						if rings == epfbackend.RingPacked {
							format = "packed"
						}
						name := fmt.Sprintf("%s/poll=%v/hipri=%v/%s/depth=%d", disk, poll, spin, format, depth)
						b.Run(name, func(b *testing.B) {
							benchmarkRead(b, setup{
								path: path, options: epfbackend.Options{Poll: poll, Rings: rings}, polled: spin,
								queue: rc.QueueConfig{Indirect: 4},
							}, depth)
						})
					}
				}
			}
		}
	}
}

func benchmarkRead(b *testing.B, s setup, depth int) {
	r := newRig(b, s)
	l := newClosedLoop(b, r, depth, virtioblk.TypeIn)
	l.spin = s.polled
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l.run(b, 1000)
	b.ReportAllocs()
	b.ResetTimer()
	l.run(b, b.N)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "IOPS")
}
