package epfbackend_test

import (
	"bytes"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// Guest memory of two regions: rings fit into the first, requests are in the
// second. There is a gap between them.
const (
	ringBase = 0x10_0000
	ringSize = 64 << 10
	dataBase = 1 << 32
	dataSize = 64 << 20
)

var twoRegions = []vringtest.Range{{Base: ringBase, Size: ringSize}, {Base: dataBase, Size: dataSize}}

// transfersOnly is memory that cannot be lent.
func transfersOnly() *loopback.Faults { return noLending(0, ^uint64(0)) }

// shuffled is a DMA engine that does everything in any order it may, with odd limits.
func shuffled(seed uint64) *loopback.Link {
	l := loopback.Gen3x2
	l.Segment, l.Boundary, l.Shuffle = 1024, 4096, seed
	return &l
}

func noLending(from, to uint64) *loopback.Faults {
	f := new(loopback.Faults)
	f.NoLending(func(addr uint64) bool { return addr >= from && addr < to })
	return f
}

// newRequestRegion gives requests the second region: what is left of the first is
// taken.
func fillFirstRegion(t testing.TB, m *vringtest.Memory) {
	for m.Regions()[0].Base == ringBase {
		addr, err := m.Alloc(512, 1)
		require.NoError(t, err)
		if addr >= dataBase {
			return
		}
	}
}

func TestMemoryThatCannotBeLent(t *testing.T) {
	for name, faults := range map[string]*loopback.Faults{
		"nothing":  transfersOnly(),
		"no rings": noLending(0, dataBase),
		"no data":  noLending(dataBase, ^uint64(0)),
	} {
		t.Run(name, func(t *testing.T) {
			engines(t, func(t *testing.T, o epfbackend.Options) {
				r := newRig(t, setup{options: o, faults: faults, memory: twoRegions, queue: rc.QueueConfig{Indirect: 8, Size: 64}})
				fillFirstRegion(t, r.mem)
				roundTrips(r) // the largest request is larger than a bounce buffer
				r.must(virtioblk.TypeGetID, 0, make([]byte, 20))
				r.must(virtioblk.TypeWriteZeroes, 0, ranges(virtioblk.Range{NumSectors: 8}))
			})
		})
	}
}

// More requests than there are bounce buffers take turns.
func TestManyRequestsThroughFewBuffers(t *testing.T) {
	for _, s := range []setup{{faults: transfersOnly()}, {link: shuffled(2)}} {
		engines(t, func(t *testing.T, o epfbackend.Options) {
			s.options = o
			manyRequests(t, s)
		})
	}
}

func manyRequests(t *testing.T, s setup) {
	r := newRig(t, s)
	const n, size = 40, 600 << 10
	var out, in []*rc.Request
	path := pattern(n*1024, 9)
	for i := range n {
		q := r.request(size)
		q.Type, q.Sector, q.Len = virtioblk.TypeOut, uint64(i*16), 8192
		copy(q.Data(), path[i*100:])
		out = append(out, q)
		require.NoError(t, r.q.Submit(q))
	}
	r.finish(out)
	for i := range n {
		q := out[i]
		q.Type, q.Sector, q.Len = virtioblk.TypeIn, uint64(i*16), size
		clear(q.Data())
		in = append(in, q)
		require.NoError(t, r.q.Submit(q))
	}
	r.finish(in)
	disk := r.must(virtioblk.TypeIn, 0, make([]byte, 2<<20))
	for i, q := range in {
		require.True(t, bytes.Equal(disk[i*16*sector:][:size], q.Data()), "request %d", i)
	}
}

// finish kicks and waits until all requests are done, and fine.
func (r *rig) finish(list []*rc.Request) {
	r.t.Helper()
	require.NoError(r.t, r.q.Kick())
	var done []*rc.Request
	for len(done) < len(list) {
		var err error
		done, err = r.q.Wait(done, patience)
		require.NoError(r.t, err)
	}
	for _, q := range list {
		require.Equal(r.t, virtioblk.StatusOK, q.Status)
	}
}

// A worker that is to pause fetches nothing more, also where it is in the middle of it:
// a host that takes its time for each header is waited for once.
func TestPauseCutsAFetchShort(t *testing.T) {
	const n = 40
	faults := noLending(dataBase, ^uint64(0))
	r := newRig(t, setup{faults: faults, memory: twoRegions, queue: rc.QueueConfig{Indirect: 4, Size: 64}})
	fillFirstRegion(t, r.mem)
	var list []*rc.Request
	for range n {
		q := r.request(sector)
		q.Type = virtioblk.TypeIn
		list = append(list, q)
		require.NoError(t, r.q.Submit(q))
	}
	var transfers atomic.Int32
	faults.Transfers(func(bool, uint64, int) error {
		transfers.Add(1)
		time.Sleep(10 * time.Millisecond)
		return nil
	})
	require.NoError(t, r.q.Kick())
	require.Eventually(t, func() bool { return transfers.Load() > 0 }, patience, time.Millisecond)
	require.NoError(t, r.fn.Pause(t.Context()))
	require.Less(t, transfers.Load(), int32(n), "not even all headers")
	r.fn.Resume()
	r.finish(list)
}

// A request over lendable and other memory goes through a buffer as a whole.
func TestMixedMemory(t *testing.T) {
	const near, far = 1 << 32, 1<<32 + 1<<20
	r := newRig(t, setup{
		faults: noLending(far, ^uint64(0)),
		memory: []vringtest.Range{{Base: ringBase, Size: 1 << 20}, {Base: near, Size: 1 << 20}, {Base: far, Size: 1 << 20}},
	})
	q := r.request(sector)
	data := pattern(256<<10, 3)
	copy(r.mem.Bytes(far-100<<10, 100<<10), data)
	copy(r.mem.Bytes(far, 156<<10), data[100<<10:])
	for _, c := range []virtioblk.RequestType{virtioblk.TypeOut, virtioblk.TypeIn} {
		q.Type = c
		header := vring.Segment{Addr: q.HeaderAddr(), Len: virtioblk.HeaderLen}
		body := vring.Segment{Addr: far - 100<<10, Len: 256 << 10} // across both
		readable, writable := []vring.Segment{header, body}, []vring.Segment{{Addr: q.StatusAddr(), Len: 1}}
		if c == virtioblk.TypeIn {
			clear(r.mem.Bytes(far-100<<10, 100<<10))
			clear(r.mem.Bytes(far, 156<<10))
			readable, writable = readable[:1], []vring.Segment{body, writable[0]}
		}
		require.NoError(t, r.q.SubmitChain(q, readable, writable))
		r.finish([]*rc.Request{q})
		require.True(t, bytes.Equal(data, r.onDisk(0, len(data))))
	}
	require.True(t, bytes.Equal(data[:100<<10], r.mem.Bytes(far-100<<10, 100<<10)))
	require.True(t, bytes.Equal(data[100<<10:], r.mem.Bytes(far, 156<<10)))
}

func TestUnmappedBuffers(t *testing.T) {
	const nowhere, readOnly = 1 << 40, 1 << 33
	for _, s := range []setup{{}, {faults: transfersOnly()}, {link: shuffled(3)}} {
		s.memory = []vringtest.Range{
			{Base: ringBase, Size: 1 << 20}, {Base: readOnly, Size: 1 << 20, ReadOnly: true},
		}
		r := newRig(t, s)
		q := r.request(sector)
		header := []vring.Segment{{Addr: q.HeaderAddr(), Len: virtioblk.HeaderLen}}
		status := vring.Segment{Addr: q.StatusAddr(), Len: 1}
		end := uint64(ringBase + 1<<20)
		for _, c := range []struct {
			name     string
			kind     virtioblk.RequestType
			readable []vring.Segment
			writable []vring.Segment
			want     virtioblk.Status
		}{
			{"read to nowhere", virtioblk.TypeIn, header, []vring.Segment{{Addr: nowhere, Len: 4096}, status}, virtioblk.StatusIOErr},
			{"read over the end", virtioblk.TypeIn, header, []vring.Segment{{Addr: end - 512, Len: 1024}, status}, virtioblk.StatusIOErr},
			{"read to the end of the address space", virtioblk.TypeIn, header, []vring.Segment{{Addr: 1<<64 - 4096, Len: 4095}, {Addr: q.DataAddr(), Len: 1}, status}, virtioblk.StatusIOErr},
			{"read to what is read-only", virtioblk.TypeIn, header, []vring.Segment{{Addr: readOnly, Len: 4096}, status}, virtioblk.StatusIOErr},
			{"write from nowhere", virtioblk.TypeOut, append(header, vring.Segment{Addr: nowhere, Len: 4096}), []vring.Segment{status}, virtioblk.StatusIOErr},
			{"write from what is read-only", virtioblk.TypeOut, append(header, vring.Segment{Addr: readOnly, Len: 4096}), []vring.Segment{status}, virtioblk.StatusOK},
			{"identifier to nowhere", virtioblk.TypeGetID, header, []vring.Segment{{Addr: nowhere, Len: 20}, status}, virtioblk.StatusIOErr},
			{"ranges from nowhere", virtioblk.TypeDiscard, append(header, vring.Segment{Addr: nowhere, Len: 16}), []vring.Segment{status}, virtioblk.StatusIOErr},
			{"header from nowhere", virtioblk.TypeFlush, []vring.Segment{{Addr: nowhere, Len: 16}}, []vring.Segment{status}, virtioblk.StatusIOErr},
		} {
			q.Type = c.kind
			require.NoError(t, r.q.SubmitChain(q, c.readable, c.writable), c.name)
			_, err := r.q.Finish(q)
			require.NoError(t, err)
			require.Equal(t, c.want, q.Status, c.name)
			r.alive()
		}
	}
}

// Without a status there is no way to report, so the device stops.
func TestUnmappedStatus(t *testing.T) {
	for i, status := range []uint64{1 << 40, 1 << 33, 1 << 40} {
		s := setup{memory: []vringtest.Range{
			{Base: ringBase, Size: 1 << 20}, {Base: 1 << 33, Size: 1 << 20, ReadOnly: true},
		}}
		if i == 2 {
			s.link = shuffled(4)
		}
		r := newRig(t, s)
		q := r.request(sector)
		require.NoError(t, r.q.SubmitChain(q, []vring.Segment{{Addr: q.HeaderAddr(), Len: 16}}, []vring.Segment{{Addr: status, Len: 1}}))
		require.NoError(t, r.q.Kick())
		r.broken()

		// Until then it is quiet, though the ring is sound.
		good := r.request(sector)
		require.NoError(t, r.q.Submit(good))
		require.NoError(t, r.q.Kick())
		require.NoError(t, r.q.Notify())
		time.Sleep(20 * time.Millisecond)
		require.Zero(t, r.q.UsedIndex())
		r.revive()
	}
}

func TestTransfersThatFail(t *testing.T) {
	for _, link := range []*loopback.Link{nil, shuffled(5)} {
		engines(t, func(t *testing.T, o epfbackend.Options) { failTransfers(t, setup{options: o, link: link}) })
	}
}

func failTransfers(t *testing.T, s setup) {
	wrong := errors.New("completion timeout")
	var bad atomic.Uint64 // the region where transfers fail
	faults := transfersOnly()
	faults.Transfers(func(_ bool, addr uint64, _ int) error {
		if b := bad.Load(); b != 0 && addr >= b && addr < b+dataSize {
			return wrong
		}
		return nil
	})
	s.faults, s.memory, s.queue = faults, twoRegions, rc.QueueConfig{Size: 64}
	r := newRig(t, s)
	q := r.request(sector) // header and status are in the first region
	fillFirstRegion(t, r.mem)
	data, err := r.mem.Alloc(1<<20, 1)
	require.NoError(t, err)
	header, status := vring.Segment{Addr: q.HeaderAddr(), Len: 16}, vring.Segment{Addr: q.StatusAddr(), Len: 1}
	body := vring.Segment{Addr: data, Len: 1 << 20}

	bad.Store(dataBase)
	for range 10 { // more often than there are buffers
		q.Type = virtioblk.TypeIn
		require.NoError(t, r.q.SubmitChain(q, []vring.Segment{header}, []vring.Segment{body, status}))
		s, err := r.q.Finish(q)
		require.NoError(t, err)
		require.Equal(t, virtioblk.StatusIOErr, s)
		q.Type = virtioblk.TypeOut
		require.NoError(t, r.q.SubmitChain(q, []vring.Segment{header, body}, []vring.Segment{status}))
		s, err = r.q.Finish(q)
		require.NoError(t, err)
		require.Equal(t, virtioblk.StatusIOErr, s)
	}
	bad.Store(0)
	r.must(virtioblk.TypeIn, 0, make([]byte, 1<<20))

	// The ring is another matter.
	bad.Store(ringBase)
	require.NoError(t, r.q.SubmitChain(q, []vring.Segment{header, body}, []vring.Segment{status}))
	require.NoError(t, r.q.Kick())
	require.NoError(t, r.q.Notify())
	r.broken()
}

// However the worker waits, it hears of the ends of moves.
func TestDMAWithEachPoll(t *testing.T) {
	for _, poll := range []epfbackend.Poll{epfbackend.PollOff, epfbackend.PollAuto, epfbackend.PollAlways, epfbackend.Poll(time.Millisecond)} {
		for _, path := range []string{"", "null:1G"} {
			for _, never := range []bool{false, true} {
				if never && poll != epfbackend.PollAlways {
					continue // such drivers are for those who always look
				}
				r := newRig(t, setup{
					path: path, link: shuffled(16), polled: never,
					options: epfbackend.Options{Poll: poll, Rings: epfbackend.RingBoth},
				})
				newClosedLoop(t, r, 8, virtioblk.TypeOut).run(t, 40)
				newClosedLoop(t, r, 1, virtioblk.TypeIn).run(t, 8)
			}
		}
	}
}

func TestSlowTransfers(t *testing.T) {
	faults := transfersOnly()
	faults.Transfers(func(bool, uint64, int) error { time.Sleep(200 * time.Microsecond); return nil })
	roundTrips(newRig(t, setup{faults: faults}))
}

func TestLateInterrupts(t *testing.T) {
	faults := new(loopback.Faults)
	faults.DelayInterrupts(5 * time.Millisecond)
	roundTrips(newRig(t, setup{faults: faults}))
}

// A memory file that is truncated under the device is a fault in our address
// space. It costs the device, not the process.
func TestTruncatedMemory(t *testing.T) {
	for _, region := range []int{0, 1} {
		for _, s := range []setup{{}, {faults: transfersOnly()}, {link: shuffled(6)}} {
			for _, path := range []string{"", "null:8M"} {
				engines(t, func(t *testing.T, o epfbackend.Options) {
					s.path, s.options = path, o
					truncate(t, s, region)
				})
			}
		}
	}
}

func truncate(t *testing.T, s setup, region int) {
	s.memory, s.queue = twoRegions, rc.QueueConfig{Size: 64}
	r := newRig(t, s)
	q := r.request(sector)
	fillFirstRegion(t, r.mem)
	data, err := r.mem.Alloc(64<<10, 4096)
	require.NoError(t, err)
	q.Type = virtioblk.TypeIn
	header, status := vring.Segment{Addr: q.HeaderAddr(), Len: 16}, vring.Segment{Addr: q.StatusAddr(), Len: 1}
	require.NoError(t, r.q.SubmitChain(q, []vring.Segment{header}, []vring.Segment{{Addr: data, Len: 64 << 10}, status}))
	require.True(t, r.q.Driver.Kick())

	file := r.mem.Regions()[region]
	require.NoError(t, unix.Ftruncate(file.FD(), 0))
	require.NoError(t, r.q.Notify())
	if region == 1 { // only the data is gone, so only the request fails
		r.finishWith(q, virtioblk.StatusIOErr)
		require.NoError(t, unix.Ftruncate(file.FD(), int64(file.Size)))
	} else {
		r.broken()
		require.NoError(t, unix.Ftruncate(file.FD(), int64(file.Size)))
	}
	r.revive()
}

// finishWith waits for one request.
func (r *rig) finishWith(q *rc.Request, want virtioblk.Status) {
	r.t.Helper()
	_, err := r.q.Finish(q)
	require.NoError(r.t, err)
	require.Equal(r.t, want, q.Status)
}
