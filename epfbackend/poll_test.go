package epfbackend_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk/disktest"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

func TestPollNames(t *testing.T) {
	for text, want := range map[string]epfbackend.Poll{
		"auto": epfbackend.PollAuto, "off": epfbackend.PollOff, "always": epfbackend.PollAlways,
		"20": epfbackend.Poll(20 * time.Microsecond), "20µs": epfbackend.Poll(20 * time.Microsecond),
		"1.5ms": epfbackend.Poll(1500 * time.Microsecond),
	} {
		got, err := epfbackend.ParsePoll(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		again, err := epfbackend.ParsePoll(got.String())
		require.NoError(t, err, text)
		require.Equal(t, got, again, text)
	}
	for _, text := range []string{"", "0", "-1", "-1us", "0s", "on", "20 us", "1e9", "99999999999"} {
		_, err := epfbackend.ParsePoll(text)
		require.ErrorIs(t, err, epfbackend.ErrPoll, text)
	}
	require.ErrorIs(t, epfbackend.Options{Poll: -3}.Check(), epfbackend.ErrOption)
}

// silent is a slot whose host never rings a doorbell.
type silent struct{ *loopback.Slot }

func (s silent) WriteBAR(bar int, off uint64, p []byte) error {
	if bar == 4 && off >= 0x3000 {
		return nil
	}
	return s.Slot.WriteBAR(bar, off, p)
}

// A host that never notifies is served by a function that always looks, through
// everything that can happen to a queue.
func TestHostThatNeverNotifies(t *testing.T) {
	for name, s := range map[string]setup{
		"split":     {},
		"packed":    {options: epfbackend.Options{Rings: epfbackend.RingPacked}},
		"plain":     {options: epfbackend.Options{Engine: disk.Plain}},
		"null":      {path: "null:1G"},
		"transfers": {faults: transfersOnly()},
		"trap-free": {options: epfbackend.Options{TrapFree: true}},
	} {
		t.Run(name, func(t *testing.T) {
			s.options.Poll, s.polled = epfbackend.PollAlways, true
			r := newSlot(t, s)
			var err error
			r.dev, err = rc.Open(silent{r.slot})
			require.NoError(t, err)
			r.start()
			data := pattern(4*sector, 1)
			for i := range uint64(100) {
				r.must(virtioblk.TypeOut, i*4, data)
				got := r.must(virtioblk.TypeIn, i*4, make([]byte, len(data)))
				if s.path == "" {
					require.Equal(t, data, got)
				}
			}
			if name != "trap-free" {
				// The map of host memory changes under the live queue.
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				defer cancel()
				require.NoError(t, r.fn.Pause(ctx))
				r.fn.Resume()
				r.alive()
				r.revive()
			}
		})
	}
}

// eager is an engine that always says that there may be something to take, as the kernel's
// mark can until the next operation completes.
type eager struct{ disk.Engine }

func (eager) Ready() bool { return true }

type eagerStore struct{ disk.Store }

func (s eagerStore) NewEngine(kind disk.EngineKind, depth, doorbell int) (disk.Engine, error) {
	e, err := s.Store.NewEngine(kind, depth, doorbell)
	return eager{e}, err
}

// A worker that is told that its engine has something to take, and finds nothing, still
// serves the ring, goes on after transfers, and does not look for longer than it may.
func TestEngineWithNothingReady(t *testing.T) {
	link := loopback.Gen3x2
	for name, link := range map[string]*loopback.Link{"the ring is served": nil, "transfers end": &link} {
		t.Run(name, func(t *testing.T) {
			r := newSlot(t, setup{
				options: epfbackend.Options{Poll: epfbackend.PollAlways}, polled: true, link: link,
				wrap: func(s disk.Store) disk.Store { return eagerStore{s} },
			})
			var err error
			r.dev, err = rc.Open(silent{r.slot})
			require.NoError(t, err)
			r.start()
			for range 100 {
				r.alive()
			}
		})
	}
	for name, poll := range map[string]epfbackend.Poll{"auto": epfbackend.PollAuto, "time": epfbackend.Poll(50 * time.Microsecond)} {
		t.Run("it sleeps, "+name, func(t *testing.T) {
			r := newSlot(t, setup{
				options: epfbackend.Options{Poll: poll},
				wrap:    func(s disk.Store) disk.Store { return eagerStore{s} },
			})
			r.start()
			for range 100 {
				r.alive()
			}
			var slept bool
			for end := time.Now().Add(patience); !slept && time.Now().Before(end); {
				slept = share(t) < 0.25
			}
			require.True(t, slept, "it spins")
		})
	}
}

// The same host gets no answer where its doorbell is waited for.
func TestSleepingFunctionNeedsNotifications(t *testing.T) {
	r := newSlot(t, setup{options: epfbackend.Options{Poll: epfbackend.PollOff}})
	var err error
	r.dev, err = rc.Open(silent{r.slot})
	require.NoError(t, err)
	r.start()
	for n := range 2 {
		require.NoError(t, r.q.Submit(r.request(sector)))
		require.NoError(t, r.q.Kick())
		_, err = r.q.Wait(nil, 100*time.Millisecond)
		if n > 0 || err != nil { // the first may still be found when the queue starts
			require.ErrorIs(t, err, rc.ErrTimeout)
		}
	}
}

// cpu returns the processor time of this process.
func cpu(t testing.TB) time.Duration {
	var u unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// share returns which share of a processor this process takes for a while in which
// it only waits.
func share(t testing.TB) float64 {
	const while = 400 * time.Millisecond
	before, start := cpu(t), time.Now()
	time.Sleep(while)
	return float64(cpu(t)-before) / float64(time.Since(start))
}

// What polling costs: nothing without load, unless it was asked for, and nothing
// while all there is to wait for is a slow disk.
func TestPollingCostsNothingWhenIdle(t *testing.T) {
	idle, waiting := map[epfbackend.Poll]float64{}, map[epfbackend.Poll]float64{}
	brief := epfbackend.Poll(50 * time.Microsecond)
	for _, poll := range []epfbackend.Poll{epfbackend.PollOff, epfbackend.PollAuto, brief, epfbackend.PollAlways} {
		t.Run(poll.String(), func(t *testing.T) {
			var faults *disktest.Faults
			r := newRig(t, setup{
				options: epfbackend.Options{Poll: poll},
				wrap: func(s disk.Store) disk.Store {
					faults = disktest.Wrap(s)
					return faults
				},
			})
			l := newClosedLoop(t, r, 1, virtioblk.TypeIn)
			l.run(t, 1000)
			idle[poll] = share(t)

			faults.Add(disktest.Rule{Ops: []disk.Op{disk.Read}, Delay: 500 * time.Millisecond})
			require.NoError(t, r.q.Submit(l.list[0]))
			require.NoError(t, r.q.Kick())
			waiting[poll] = share(t)
			_, err := r.q.Wait(nil, patience)
			require.NoError(t, err)
		})
	}
	t.Logf("shares of a processor: idle %v, waiting for the disk %v", idle, waiting)
	for _, seen := range []map[epfbackend.Poll]float64{idle, waiting} {
		require.Greater(t, seen[epfbackend.PollAlways], 10*seen[epfbackend.PollOff])
		for _, poll := range []epfbackend.Poll{epfbackend.PollAuto, brief} {
			require.Less(t, seen[poll], seen[epfbackend.PollOff]+0.02, "%v", poll)
		}
	}
}

// Adaptive polling has to begin once there is a load that is worth it: then the
// driver need not notify. Without polling it has to, each time.
func TestAutoPollsUnderLoad(t *testing.T) {
	const n = 2000
	kicks := map[epfbackend.Poll]int64{}
	for _, poll := range []epfbackend.Poll{epfbackend.PollOff, epfbackend.PollAuto, epfbackend.PollAlways} {
		r := newRig(t, setup{path: "null:1G", options: epfbackend.Options{Poll: poll}})
		l := newClosedLoop(t, r, 1, virtioblk.TypeIn)
		l.run(t, n)
		kicks[poll] = r.q.Kicks()
	}
	t.Logf("notifications of %d requests: %v", n, kicks)
	require.Greater(t, kicks[epfbackend.PollOff], int64(n*9/10))
	require.Less(t, kicks[epfbackend.PollAlways], int64(n/10))
	require.Less(t, kicks[epfbackend.PollAuto], kicks[epfbackend.PollOff])
}
