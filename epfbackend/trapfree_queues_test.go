package epfbackend_test

import (
	"errors"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

const trapFreeQueues = 4

// Several queues are captured while a driver sets them up, and each request is
// answered on the queue it was made on. Where one was missed nothing is served,
// and both ends are told so.
func TestTrapFreeSeveralQueues(t *testing.T) {
	const rounds = 40
	for name, c := range map[string]struct{ busy, least int }{
		"quiet": {0, rounds / 2}, "loaded": {runtime.NumCPU(), 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSlot(t, trapFree(setup{options: epfbackend.Options{Queues: trapFreeQueues}}))
			occupy(t, c.busy)
			captured := 0
			for range rounds {
				if r.severalQueues() {
					captured++
				}
			}
			t.Logf("all of %d queues captured in %d of %d set-ups", trapFreeQueues, captured, rounds)
			require.GreaterOrEqual(t, captured, c.least)
			if captured < rounds { // not a trifle, but no wrong service either
				require.Contains(t, r.log.String(), "were not captured; unbind the driver and bind it again")
			}
		})
	}
}

// severalQueues sets the device up at the pace of a driver that requests
// interrupts and allocates rings. It says whether all queues were captured; then
// all of them are served.
func (r *rig) severalQueues() (captured bool) {
	r.t.Helper()
	r.negotiate()
	time.Sleep(time.Millisecond)
	var queues []*rc.Queue
	for i := range trapFreeQueues {
		queues = append(queues, r.newQueue(rc.QueueConfig{Index: i}))
		for begin := time.Now(); time.Since(begin) < 30*time.Microsecond; {
		}
	}
	require.NoError(r.t, r.dev.Start())
	defer func() { require.NoError(r.t, r.dev.Reset()) }()
	for i, q := range queues {
		want := pattern(sector, byte(16*i+1))
		for _, kind := range []virtioblk.RequestType{virtioblk.TypeOut, virtioblk.TypeIn} {
			one, err := q.NewRequest(sector)
			require.NoError(r.t, err)
			one.Type, one.Sector = kind, uint64(i)
			if kind == virtioblk.TypeOut {
				copy(one.Data(), want)
			}
			require.NoError(r.t, q.Submit(one))
			require.NoError(r.t, q.Kick())
			if !r.answered(q) {
				return false
			}
			require.Equal(r.t, virtioblk.StatusOK, one.Status)
			require.Equal(r.t, want, one.Data())
		}
	}
	return true
}

// answered waits for a queue's only request, or for the device to say that it needs
// a reset, which it may only do instead.
func (r *rig) answered(q *rc.Queue) bool {
	r.t.Helper()
	for begin := time.Now(); time.Since(begin) < patience; {
		done, err := q.Poll(nil)
		require.NoError(r.t, err)
		if len(done) == 1 {
			return true
		}
		if s, err := r.dev.Status(); err == nil && s.Has(virtio.NeedsReset) {
			require.False(r.t, r.fn.Active())
			return false
		}
	}
	require.NoError(r.t, errors.New("neither an answer nor a complaint"))
	return false
}

// occupy has n other processes keep the processors busy until the end of the test.
func occupy(t *testing.T, n int) {
	for range n {
		c := exec.Command("sh", "-c", "while :; do :; done")
		require.NoError(t, c.Start())
		t.Cleanup(func() {
			require.NoError(t, c.Process.Kill())
			_ = c.Wait() // killed
		})
	}
}

// A driver that stays where it is while it sets queues up does not keep a
// processor busy for ever.
func TestTrapFreeStuckSetUp(t *testing.T) {
	r := newSlot(t, trapFree(setup{options: epfbackend.Options{Queues: 2}}))
	r.negotiate()
	r.newQueue(rc.QueueConfig{Index: 0, Size: 16})
	time.Sleep(1200 * time.Millisecond)
	before, began := processorTime(t), time.Now()
	time.Sleep(time.Second)
	require.Less(t, processorTime(t)-before, time.Since(began)*4/5)
	require.NoError(t, r.dev.Reset())
}
