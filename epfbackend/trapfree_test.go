package epfbackend_test

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk/disktest"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// trapFree is a setup whose registers are plain memory, with a driver that does
// not know packed virtqueues.
func trapFree(s setup) setup {
	s.options.TrapFree = true
	s.refuse = append(s.refuse, virtio.RingPacked, virtio.NotificationData)
	return s
}

func TestTrapFreeServesRequests(t *testing.T) {
	for _, link := range []*loopback.Link{nil, shuffled(12)} {
		trapFreeServes(t, link)
	}
}

func trapFreeServes(t *testing.T, link *loopback.Link) {
	engines(t, func(t *testing.T, o epfbackend.Options) {
		r := newRig(t, trapFree(setup{options: o, link: link}))
		roundTrips(r)
		big := pattern(3<<20, 9)
		r.must(virtioblk.TypeOut, 0, big)
		require.True(t, bytes.Equal(big, r.must(virtioblk.TypeIn, 0, make([]byte, len(big)))))
		require.True(t, bytes.Equal(big, r.onDisk(0, len(big))))
	})
}

// One driver after the other uses the device; none waits for the end of a reset,
// and none finds a queue enabled that it has not enabled.
func TestTrapFreeDriversComeAndGo(t *testing.T) {
	for name, link := range map[string]*loopback.Link{"transfers": nil, "DMA": shuffled(13)} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, trapFree(setup{link: link}))
			for range 100 {
				r.alive()
				require.NoError(t, r.dev.Reset())
				enabled, err := r.dev.Read(virtiopci.QueueEnable, 2)
				require.NoError(t, err)
				require.Zero(t, enabled)
				r.start()
			}
		})
	}
}

// A write is durable when it completes until the driver has shown, by a flush,
// that it knows of the cache; the next driver has to show it again.
func TestTrapFreeWriteCacheByEvidence(t *testing.T) {
	s, rec := recorded(trapFree(setup{}))
	r := newRig(t, s)
	write := func() bool { return modified(r, rec) }
	becomes := func(durable bool) { // it may be noticed in between
		require.Eventually(t, func() bool {
			return !slices.Contains(modifications(r, rec), !durable)
		}, patience, 2*epfbackend.ReactionTime)
	}
	for range 2 {
		require.True(t, write(), "nothing was flushed yet")
		r.must(virtioblk.TypeFlush, 0, nil)
		require.False(t, write(), "flushes are to be expected")
		require.NoError(t, r.dev.WriteDeviceConfig(virtioblk.CfgWriteback, []byte{0}))
		becomes(true)
		require.NoError(t, r.dev.WriteDeviceConfig(virtioblk.CfgWriteback, []byte{1}))
		becomes(false)
		r.revive()
	}
}

// A driver that resets in the middle of I/O does not wait, and sees neither data nor used
// buffers arrive later. While the disk is slow the sampler finds the reset; when the disk
// answers before that, the worker has to, which looks at the registers itself before it
// touches host memory.
func TestTrapFreeResetTakesMemoryBack(t *testing.T) {
	for name, link := range map[string]*loopback.Link{"transfers": nil, "DMA": shuffled(14)} {
		for kind, op := range map[virtioblk.RequestType]disk.Op{virtioblk.TypeIn: disk.Read, virtioblk.TypeOut: disk.Write} {
			t.Run(name+" "+kind.String(), func(t *testing.T) {
				var faults *disktest.Faults
				r := newRig(t, faulty(trapFree(setup{link: link}), &faults))
				for _, slow := range []bool{true, false, false} { // the sampler may be there in time once
					q := r.request(64 << 10)
					q.Type = kind
					answer := r.hold(faults, q, op)
					mine := bytes.Repeat([]byte{0xee}, len(q.Data()))
					if slow {
						require.NoError(t, r.dev.SetStatus(virtio.Reset))
						require.Eventually(t, func() bool { return !r.fn.Active() }, patience, time.Millisecond)
					} else {
						time.Sleep(20 * epfbackend.ReactionTime) // until the sampler looks seldom
						require.NoError(t, r.dev.SetStatus(virtio.Reset))
					}
					copy(q.Data(), mine)
					close(answer)
					left := r.q
					r.revive() // the next driver is served when nothing of the last one goes on
					require.True(t, bytes.Equal(mine, q.Data()), "memory was written after a reset")
					done, err := left.Poll(nil)
					require.NoError(t, err)
					require.Empty(t, done, "a buffer was used after a reset")
				}
			})
		}
	}
}

func TestTrapFreeResize(t *testing.T) {
	r := newRig(t, trapFree(setup{}))
	before, err := r.dev.Read(virtiopci.ConfigGeneration, 1)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(r.path, 2*diskSize))
	require.NoError(t, r.fn.Refresh())
	c, err := r.dev.Config()
	require.NoError(t, err)
	require.EqualValues(t, 2*diskSize/sector, c.Capacity)
	after, err := r.dev.Read(virtiopci.ConfigGeneration, 1)
	require.NoError(t, err)
	require.NotEqual(t, before, after)
	came, _, err := r.dev.AwaitInterrupt(0, patience)
	require.NoError(t, err)
	require.True(t, came)
	r.must(virtioblk.TypeIn, 2*diskSize/sector-1, make([]byte, sector))
}

// A disk that changes while nobody is there touches no registers, for their
// memory is gone; who comes next finds the new size.
func TestTrapFreeResizeWhileDetached(t *testing.T) {
	r := newRig(t, trapFree(setup{}))
	r.alive()
	r.unplug()
	require.NoError(t, os.Truncate(r.path, 2*diskSize))
	require.NoError(t, r.fn.Refresh())
	r.plug()
	c, err := r.dev.Config()
	require.NoError(t, err)
	require.EqualValues(t, 2*diskSize/sector, c.Capacity)
	r.revive()
}

// Looking costs hardly more than waking up does, and that is seldom when there is
// nothing to see.
func TestTrapFreeIsIdleWhenIdle(t *testing.T) {
	const period = epfbackend.ReactionTime
	least := func(tries int, enough float64, during func(end <-chan time.Time)) float64 {
		share := 1.0
		for ; tries > 0 && share >= enough; tries-- { // what else goes on can only add
			before, began := processorTime(t), time.Now()
			during(time.After(time.Second))
			share = min(share, float64(processorTime(t)-before)/float64(time.Since(began)))
		}
		return share
	}
	bare := least(3, 0, func(end <-chan time.Time) {
		for tick := time.NewTicker(period); ; {
			select {
			case <-tick.C:
			case <-end:
				tick.Stop()
				return
			}
		}
	})
	r := newRig(t, trapFree(setup{}))
	r.alive()
	time.Sleep(20 * period) // until it looks as seldom as it ever does
	limit := 3*bare + 0.001
	idle := least(20, limit, func(end <-chan time.Time) { <-end })
	t.Logf("%.2f %% of a core; a bare timer of %v: %.2f %%", 100*idle, period, 100*bare)
	require.Less(t, idle, limit)
}

func processorTime(t *testing.T) time.Duration {
	var u unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkTrapFreeReaction is how late a reset is noticed when nothing goes on: by the
// sampler's period, and what the scheduler adds.
func BenchmarkTrapFreeReaction(b *testing.B) {
	r := newRig(b, trapFree(setup{}))
	var late []time.Duration
	for b.Loop() {
		r.alive()
		began := time.Now()
		require.NoError(b, r.dev.SetStatus(virtio.Reset))
		for r.fn.Active() {
		}
		late = append(late, time.Since(began))
		r.start()
	}
	slices.Sort(late)
	b.ReportMetric(float64(late[len(late)/2].Microseconds()), "median-µs")
	b.ReportMetric(float64(late[len(late)-1].Microseconds()), "worst-µs")
}

// A driver's rings are found when their memory is off the map, as it is for a
// moment when firmware changes the memory map, and served when it is back.
func TestTrapFreeRingComesBack(t *testing.T) {
	r := newSlot(t, trapFree(setup{memory: twoRegions}))
	r.negotiate()
	r.q = r.newQueue(r.queue)
	require.NoError(t, rc.UnmapMemory(r.slot, r.mem))
	require.NoError(t, r.dev.Start())
	require.Eventually(t, func() bool {
		return strings.Contains(r.log.String(), "ring memory is not there")
	}, patience, time.Millisecond)
	began := time.Now()
	for range 30 { // a driver that insists does not fill the log
		require.NoError(t, r.q.Notify())
		time.Sleep(epfbackend.ReactionTime)
	}
	lines := strings.Count(r.log.String(), "ring memory is not there")
	require.LessOrEqual(t, lines, 2+int(time.Since(began)/time.Second))
	require.NoError(t, rc.MapMemory(r.slot, r.mem))
	r.alive()
}
