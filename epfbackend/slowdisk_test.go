package epfbackend_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk/disktest"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// hold submits a request that the disk holds until it is told to answer, and waits
// until it is there.
func (r *rig) hold(faults *disktest.Faults, q *rc.Request, o disk.Op) (answer chan struct{}) {
	r.t.Helper()
	answer = make(chan struct{})
	faults.Add(disktest.Rule{Ops: []disk.Op{o}, Count: 1, Until: answer})
	before := faults.Caught()
	require.NoError(r.t, r.q.Submit(q))
	require.NoError(r.t, r.q.Kick())
	require.Eventually(r.t, func() bool { return faults.Caught() > before }, patience, time.Millisecond)
	return answer
}

// slow is how long the disk takes.
const slow = 400 * time.Millisecond

// waits fails the test unless f returns after the disk has answered, which is some
// time from now.
func (r *rig) waits(answer chan struct{}, f func() error) {
	r.t.Helper()
	go func() {
		time.Sleep(slow)
		close(answer)
	}()
	require.NoError(r.t, f())
	select {
	case <-answer:
	default:
		require.Fail(r.t, "it was complete before the disk had answered")
	}
}

// A reset is complete when nothing is in flight, not earlier.
func TestResetWaitsForTheDisk(t *testing.T) {
	for name, reset := range map[string]func(r *rig) error{
		"status":         func(r *rig) error { return r.dev.Reset() },
		"function-level": func(r *rig) error { return r.slot.Reset() },
		"queue":          func(r *rig) error { return r.dev.ResetQueue(0) },
		"unplug":         func(r *rig) error { r.unplug(); return nil },
		"unmap":          func(r *rig) error { return rc.UnmapMemory(r.slot, r.mem) },
		"status after queue": func(r *rig) error {
			require.NoError(r.t, r.dev.Write(virtiopci.QueueReset, 2, 1))
			return r.dev.Reset()
		},
		"unmap after queue": func(r *rig) error {
			require.NoError(r.t, r.dev.Write(virtiopci.QueueReset, 2, 1))
			return rc.UnmapMemory(r.slot, r.mem)
		},
		"unmap after status": func(r *rig) error {
			go func() { _ = r.dev.SetStatus(0) }()
			time.Sleep(slow / 8)
			return rc.UnmapMemory(r.slot, r.mem)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var faults *disktest.Faults
			r := newRig(t, faulty(setup{}, &faults))
			q := r.request(4096)
			q.Type = virtioblk.TypeIn
			answer := r.hold(faults, q, disk.Read)
			require.NoError(t, r.dev.Write(virtiopci.QueueSelect, 2, 0))
			r.waits(answer, func() error { return reset(r) })
		})
	}
}

// A reset that takes too long does not keep the host waiting; the status says when
// it is complete. The disk answers only when that has been seen, so a write that waits
// for it does not return, however fast or slow the machine is; and if each of the later
// writes were held back as the first one is, they would take far longer than patience.
func TestResetThatTakesLong(t *testing.T) {
	var faults *disktest.Faults
	r := newRig(t, faulty(setup{}, &faults))
	q := r.request(4096)
	q.Type = virtioblk.TypeIn
	answer := r.hold(faults, q, disk.Read)
	written := make(chan error, 1)
	go func() {
		var err error
		for range 50 {
			err = errors.Join(err, r.dev.SetStatus(0))
		}
		written <- err
	}()
	select {
	case err := <-written:
		assert.NoError(t, err)
		s, err := r.dev.Status()
		assert.NoError(t, err)
		assert.NotZero(t, s, "the reset is not complete")
		close(answer)
	case <-time.After(patience):
		close(answer)
		<-written
		require.Fail(t, "a write of the status waits for the disk")
	}
	r.revive()
}

// What uses no host memory does not hold up a change of the map, however long it
// takes, and is answered afterwards.
func TestRemapDuringSlowFlush(t *testing.T) {
	for kind, o := range map[virtioblk.RequestType]disk.Op{
		virtioblk.TypeFlush: disk.Flush, virtioblk.TypeDiscard: disk.Discard, virtioblk.TypeWriteZeroes: disk.WriteZeroes,
	} {
		var faults *disktest.Faults
		r := newRig(t, faulty(setup{}, &faults))
		q := r.request(virtioblk.RangeLen)
		q.Type = kind
		if copy(q.Data(), ranges(virtioblk.Range{NumSectors: 8})); kind == virtioblk.TypeFlush {
			q.Len = 0
		}
		answer := r.hold(faults, q, o)
		require.NoError(t, rc.UnmapMemory(r.slot, r.mem)) // what waited for the disk would give up
		require.NoError(t, rc.MapMemory(r.slot, r.mem))
		close(answer)
		r.finishWith(q, virtioblk.StatusOK)
	}
}

// A reset abandons what is left of a long request.
func TestResetDuringLongRequest(t *testing.T) {
	const size = 4 << 20
	list := make([]virtioblk.Range, 16)
	for i := range list {
		list[i].NumSectors = 8
	}
	for _, c := range []struct {
		kind virtioblk.RequestType
		op   disk.Op
		data []byte
	}{
		{virtioblk.TypeDiscard, disk.Discard, ranges(list...)},
		{virtioblk.TypeOut, disk.Write, make([]byte, size)},
		{virtioblk.TypeIn, disk.Read, make([]byte, size)},
	} {
		var faults *disktest.Faults
		r := newRig(t, faulty(setup{faults: transfersOnly()}, &faults))
		q := r.request(len(c.data))
		q.Type = c.kind
		copy(q.Data(), c.data)
		faults.Add(disktest.Rule{Ops: []disk.Op{c.op}, Delay: slow})
		require.NoError(t, r.q.Submit(q))
		require.NoError(t, r.q.Kick())
		require.Eventually(t, func() bool { return faults.Caught() > 0 }, patience, time.Millisecond)
		require.NoError(t, r.dev.Reset())
		require.LessOrEqual(t, faults.Caught(), 8, "of 16 ranges, or 32 pieces")
		faults.Clear()
		r.revive()
	}
}

// A pause or a reset that takes too long fails, and is mended by the next.
func TestPatienceOfTheController(t *testing.T) {
	var faults *disktest.Faults
	r := newRig(t, faulty(setup{}, &faults))
	q := r.request(4096)
	q.Type = virtioblk.TypeIn
	brief, cancel := context.WithTimeout(t.Context(), slow/8)
	defer cancel()

	answer := r.hold(faults, q, disk.Read)
	require.ErrorIs(t, r.fn.Pause(brief), context.DeadlineExceeded)
	r.fn.Resume()
	close(answer)
	r.finishWith(q, virtioblk.StatusOK)
	require.NoError(t, r.fn.Pause(t.Context()))
	require.NoError(t, r.fn.Pause(t.Context()), "paused already")
	r.fn.Resume()
	r.alive()

	answer = r.hold(faults, q, disk.Read)
	require.ErrorIs(t, r.fn.Reset(brief), context.DeadlineExceeded)
	r.waits(answer, func() error { return r.fn.Reset(t.Context()) })
	require.NoError(t, r.fn.Pause(t.Context()), "nothing to pause")
	r.fn.Resume()
	r.revive()
}
