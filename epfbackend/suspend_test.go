package epfbackend_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// leave suspends the function, and returns what lets another one go on.
func (r *rig) leave() (goOn func()) {
	r.t.Helper()
	return r.successor(r.slot.Suspend())
}

// successor returns what lets another function go on after one whose end came to err.
func (r *rig) successor(err error) (goOn func()) {
	r.t.Helper()
	require.NoError(r.t, err)
	return func() {
		r.t.Helper()
		r.succeed(r.slot.Continue)
	}
}

// succeed makes another function and has it put into the slot.
func (r *rig) succeed(put func(epc.Function) error) {
	r.t.Helper()
	next, err := epfbackend.New(r.store, r.options)
	require.NoError(r.t, err)
	old := r.fn
	r.fn = next
	require.NoError(r.t, put(next))
	require.NoError(r.t, old.Close())
}

// ask asks for something while nobody serves, and sees it done when somebody goes on.
func (r *rig) ask(goOn func()) {
	r.t.Helper()
	q := r.request(sector)
	require.NoError(r.t, r.q.Submit(q))
	require.NoError(r.t, r.q.Kick())
	goOn()
	status, err := r.q.Finish(q)
	require.NoError(r.t, err)
	require.Equal(r.t, virtioblk.StatusOK, status)
}

// lasting are the setups that can be left.
func lasting() map[string]setup {
	packed, split := roomy(0), roomy(0)
	packed.refuse = []virtio.Feature{virtio.NotificationData}
	split.queue.Size = 8
	packed.queue.Size = 8
	several := roomy(1 << 20)
	room := *several.options.Room
	several.options.Room, several.options.Queues = &room, 3
	return map[string]setup{"split": split, "packed": packed, "several": several}
}

// lastingOne are those of one queue. Several are not served by who has not watched them
// being set up: see the register file.
func lastingOne() map[string]setup {
	m := lasting()
	delete(m, "several")
	return m
}

// A driver does not notice that its function is served by one process after the
// other, wherever its ring is, and whatever it asks for in between.
func TestAnotherProcessGoesOn(t *testing.T) {
	for name, s := range lasting() {
		t.Run(name, func(t *testing.T) {
			r := newLasting(t, s)
			for n := range 25 {
				for range n % 7 {
					r.alive()
				}
				want := pattern(sector, byte(n))
				r.must(virtioblk.TypeOut, uint64(n), want)
				goOn := r.leave()
				q := r.request(sector)
				q.Type, q.Sector = virtioblk.TypeIn, uint64(n)
				require.NoError(t, r.q.Submit(q))
				if n%2 == 0 {
					require.NoError(t, r.q.Kick())
				}
				goOn()
				status, err := r.q.Finish(q)
				require.NoError(t, err)
				require.Equal(t, virtioblk.StatusOK, status)
				require.True(t, bytes.Equal(want, q.Data()))
			}
			r.revive()
		})
	}
}

// newLasting starts a driver with all queues and uses the first.
func newLasting(t *testing.T, s setup) *rig {
	t.Helper()
	r := newSlot(t, s)
	r.negotiate()
	for i := r.options.Queues; i > 1; i-- {
		r.newQueue(rc.QueueConfig{Index: i - 1, Size: s.queue.Size})
	}
	r.q = r.newQueue(s.queue)
	require.NoError(t, r.dev.Start())
	return r
}

// What the driver does to its registers while nobody serves it is found out.
func TestResetsWhileNobodyServes(t *testing.T) {
	for name, s := range lastingOne() {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, s)
			r.alive()
			goOn := r.leave()
			r.start() // a reset, and the same rings anew
			r.ask(goOn)

			goOn = r.leave()
			require.NoError(t, r.dev.Reset())
			goOn()
			r.revive()

			require.NoError(t, r.dev.Reset())
			goOn = r.leave() // with no driver there
			goOn()
			r.revive()
		})
	}
}

// What was in flight is done before the function is left, and a disk that was
// written is flushed.
func TestLeavingFinishes(t *testing.T) {
	s, rec := recorded(roomy(0))
	r := newRig(t, s)
	data := pattern(64<<10, 3)
	q := r.request(len(data))
	q.Type = virtioblk.TypeOut
	copy(q.Data(), data)
	require.NoError(t, r.q.Submit(q))
	_, err := r.q.Finish(q)
	require.NoError(t, err)
	rec.take()
	goOn := r.leave()
	require.Contains(t, rec.take(), op{Op: disk.Flush, StoreFlushing: true})
	require.True(t, bytes.Equal(data, r.onDisk(0, len(data))))
	goOn()
	r.alive()
}

// The same where data is moved by DMA, in the middle of whatever the driver asks for:
// what was fetched is done, and what was not is the next one's.
func TestLeavingUnderLoad(t *testing.T) {
	for name, s := range lastingOne() {
		t.Run(name, func(t *testing.T) {
			s.link = &loopback.Link{}
			*s.link = loopback.Gen3x2
			r := newRig(t, s)
			for range 40 {
				for range 2 {
					q := r.request(64 << 10)
					q.Type = virtioblk.TypeIn
					require.NoError(t, r.q.Submit(q))
					require.NoError(t, r.q.Kick())
				}
				r.leave()()
				for r.q.InFlight() > 0 {
					done, err := r.q.Wait(nil, patience)
					require.NoError(t, err)
					for _, q := range done {
						require.Equal(t, virtioblk.StatusOK, q.Status)
					}
				}
			}
		})
	}
}
