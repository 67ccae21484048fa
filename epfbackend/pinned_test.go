package epfbackend_test

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/prometheus/procfs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/internal/uring"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// held returns how many bytes of this process the kernel holds.
func held(t testing.TB) int {
	p, err := procfs.Self()
	require.NoError(t, err)
	status, err := p.NewStatus()
	require.NoError(t, err)
	return int(status.VmPin)
}

// holds returns a check of how many bytes the kernel holds more than now. It checks
// nothing if these are not counted for who may lock all memory: Linux 6.18 does, 7.2 does not.
func holds(t testing.TB) func(least, most int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := uring.New(4, 8)
	require.NoError(t, err)
	before := held(t)
	require.NoError(t, r.RegisterBuffers(1))
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	require.NoError(t, r.SetBuffers(page))
	counts := held(t) != before
	require.NoError(t, r.Close())
	require.NoError(t, unix.Munmap(page))
	require.Equal(t, before, held(t))
	return func(least, most int) {
		if counts {
			require.GreaterOrEqual(t, held(t)-before, least)
			require.LessOrEqual(t, held(t)-before, most)
		}
	}
}

func pinned() setup {
	return setup{
		options: epfbackend.Options{Engine: disk.URing, PinMemory: true},
		memory:  []vringtest.Range{{Base: 0x10_0000, Size: 16 << 20}},
		queue:   rc.QueueConfig{Indirect: 64},
	}
}

// Pinned memory is read and written like any other, in one part or many, and whether
// or not the engine can pin at all.
func TestPinnedMemory(t *testing.T) {
	engines(t, func(t *testing.T, o epfbackend.Options) {
		s := pinned()
		s.options.Engine = o.Engine
		holds := holds(t)
		r := newRig(t, s)
		roundTrips(r)
		if o.Engine == disk.URing {
			holds(20<<20, 24<<20) // and our own buffers
		}
		require.NoError(t, r.dev.Reset())
		holds(0, 0)
	})
}

// By the time that memory is off the map nothing holds it. What is then put at its
// place is what requests mean.
func TestPinnedMemoryIsLetGoBeforeItGoes(t *testing.T) {
	holds := holds(t)
	r := newRig(t, pinned())
	q := r.request(64 << 10)
	page := q.DataAddr() &^ 4095
	for n := range byte(20) {
		q.Type = virtioblk.TypeOut
		want := pattern(len(q.Data()), n)
		copy(q.Data(), want)
		r.finishOne(q)
		holds(20<<20, 24<<20)

		require.NoError(t, rc.UnmapMemory(r.slot, r.mem))
		holds(0, 0)
		// Other pages at the same address, of the same file.
		require.NoError(t, unix.Madvise(r.mem.Bytes(page, 64<<10), unix.MADV_REMOVE))
		require.NoError(t, rc.MapMemory(r.slot, r.mem))

		q.Type = virtioblk.TypeIn
		r.finishOne(q)
		require.True(t, bytes.Equal(want, q.Data()), "round %d", n)
	}
}

func (r *rig) finishOne(q *rc.Request) {
	r.t.Helper()
	require.NoError(r.t, r.q.Submit(q))
	r.finish([]*rc.Request{q})
}

// Requests that are lent their memory and such that are not come in the same turn.
func TestPinnedMemoryAndOther(t *testing.T) {
	s := pinned()
	s.memory, s.faults = twoRegions, noLending(dataBase, ^uint64(0))
	for range 10 {
		r := newRig(t, s)
		lent := r.request(4096)
		fillFirstRegion(t, r.mem)
		other := r.request(4096)
		lent.Type, other.Type = virtioblk.TypeOut, virtioblk.TypeOut
		lent.Sector, other.Sector = 8, 16
		copy(lent.Data(), pattern(4096, 1))
		copy(other.Data(), pattern(4096, 2))
		require.NoError(t, r.q.Submit(lent))
		require.NoError(t, r.q.Submit(other))
		r.finish([]*rc.Request{lent, other})
		require.Equal(t, pattern(4096, 1), r.onDisk(4096, 4096))
		require.Equal(t, pattern(4096, 2), r.onDisk(8192, 4096))
	}
}

// A client that maps and unmaps under load gets what it asked for.
func TestPinnedMemoryUnderRemaps(t *testing.T) {
	r := newRig(t, pinned())
	l := newLoad(t, r.q, 16, 0)
	loads(t, func() {
		for n := range 50 {
			require.NoError(t, rc.UnmapMemory(r.slot, r.mem))
			require.NoError(t, rc.MapMemory(r.slot, r.mem))
			if n%3 == 0 {
				l.progress(t, 20)
			}
		}
	}, l)
}

// Our own buffers are always pinned where that is possible.
func TestBouncePoolIsPinned(t *testing.T) {
	holds := holds(t)
	r := newRig(t, setup{options: epfbackend.Options{Engine: disk.URing}, faults: transfersOnly(), queue: rc.QueueConfig{Indirect: 64}})
	holds(0, 0)
	roundTrips(r)
	holds(4<<20, 8<<20)
	require.NoError(t, r.dev.Reset())
	holds(0, 0)
}
