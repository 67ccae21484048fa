package epfbackend

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// turns is a worker and the driver of its queue on one goroutine, so that each
// does its part when it is told to, and what the worker takes is all that is
// measured.
type turns struct {
	t        testing.TB
	w        *worker
	drv      vringtest.Virtqueue
	requests []vring.Segment // by request: header, data, status
	indirect bool
}

const turnBytes = 4096 // of data of each request

func newTurns(t testing.TB, path string, depth int, packed, indirect bool) *turns {
	store, err := disk.Open(path, disk.Options{Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	f, err := New(store, Options{Poll: PollAlways, Rings: RingBoth})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	mem, err := vringtest.NewMemory(vringtest.Range{Base: 1 << 20, Size: 4 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mem.Close()) })
	slot, err := loopback.Plug(f, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, slot.Unplug()) })
	require.NoError(t, rc.MapMemory(slot, mem))

	d := &turns{t: t, indirect: indirect}
	cfg := vringtest.Config{Size: 1024, Packed: packed, EventIdx: true, Indirect: 4}
	d.drv, err = vringtest.New(mem, cfg)
	require.NoError(t, err)
	for i := range depth {
		line, err := mem.Alloc(64, 64)
		require.NoError(t, err)
		data, err := mem.Alloc(turnBytes, 4096)
		require.NoError(t, err)
		h := mem.Bytes(line, virtioblk.HeaderLen)
		binary.LittleEndian.PutUint32(h, uint32(virtioblk.TypeIn))
		binary.LittleEndian.PutUint64(h[8:], uint64(i)*turnBytes/virtioblk.SectorSize)
		d.requests = append(d.requests,
			vring.Segment{Addr: line, Len: virtioblk.HeaderLen},
			vring.Segment{Addr: data, Len: turnBytes},
			vring.Segment{Addr: line + virtioblk.HeaderLen, Len: virtioblk.StatusLen})
	}

	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	f.accepted = virtio.NewFeatures(virtio.IndirectDesc, virtio.EventIdx)
	if packed {
		f.accepted = f.accepted.With(virtio.RingPacked)
	}
	q := d.drv.Queue()
	d.w, err = newWorker(f, 0, regfile.Queue{Size: q.Size, Desc: q.Desc, Driver: q.Driver, Device: q.Device}, running)
	require.NoError(t, err)
	require.NoError(t, d.w.open())
	t.Cleanup(d.w.close)
	return d
}

// submit makes all requests available.
func (d *turns) submit() {
	add := d.drv.Add
	if d.indirect {
		add = d.drv.AddIndirect
	}
	for r := d.requests; len(r) > 0; r = r[3:] {
		if _, err := add(r[:1], r[1:3]); err != nil {
			d.t.Fatal(err)
		}
	}
	d.drv.Kick()
}

// serve lets the worker do turns until all requests are used.
func (d *turns) serve() {
	if d.w.more = true; !d.w.step() {
		d.t.Fatal("the worker has ended")
	}
	for d.w.ring.InFlight() > 0 {
		d.w.step()
	}
}

// collect takes all requests back.
func (d *turns) collect() {
	for range len(d.requests) / 3 {
		if _, ok, err := d.drv.Collect(); !ok || err != nil {
			d.t.Fatal("not used", err)
		}
	}
}

// BenchmarkTurn is all that a worker does for a read of 4 KiB, from the ring to
// the disk and back. What counts is the median of what batches took, by request:
// it does not show what else the machine was doing.
func BenchmarkTurn(b *testing.B) {
	for bits := range 8 {
		for _, depth := range []int{1, 32, 128} {
			file, packed, indirect := bits&4 != 0, bits&2 != 0, bits&1 != 0
			path, name, format := "null:1G", "null", "split"
			if packed {
				format = "packed"
			}
			if file { // a hole, which takes the disk no time
				path, name = blktest.File(b, 1<<20), "file"
			}
			b.Run(fmt.Sprintf("%s/%s/indirect=%v/depth=%d", name, format, indirect, depth), func(b *testing.B) {
				d := newTurns(b, path, depth, packed, indirect)
				took := make([]time.Duration, 0, b.N/depth+1)
				b.ReportAllocs()
				b.ResetTimer()
				for n := 0; n < b.N; n += depth {
					d.submit()
					start := time.Now()
					d.serve()
					took = append(took, time.Since(start))
					d.collect()
				}
				b.StopTimer()
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)/2])/float64(depth), "median-ns/op")
			})
		}
	}
}

// A request costs no allocation, whatever the format of the ring and the descriptors.
func TestTurnAllocatesNothing(t *testing.T) {
	for bits := range 4 {
		for _, path := range []string{"null:1G", "file"} {
			if path == "file" {
				path = blktest.File(t, 1<<20)
			}
			d := newTurns(t, path, 16, bits&2 != 0, bits&1 != 0)
			turn := func() {
				d.submit()
				d.serve()
				d.collect()
			}
			for range 200 {
				turn()
			}
			require.Zero(t, testing.AllocsPerRun(200, turn), "%s, packed and indirect: %02b", path, bits)
		}
	}
}

// BenchmarkParse is what becomes of a fetched chain: its parts are told apart and the
// header is copied and decoded. The request is a flush of a read-only disk, which
// needs nothing more.
func BenchmarkParse(b *testing.B) {
	d := newTurns(b, "null:1G", 1, false, true)
	d.w.f.readOnly = true
	h := d.w.mem
	var kind [4]byte
	binary.LittleEndian.PutUint32(kind[:], uint32(virtioblk.TypeFlush))
	require.NoError(b, h.WriteAt(kind[:], d.requests[0].Addr))
	d.submit()
	r := d.w.free[0]
	ok, err := d.w.ring.Next(&r.chain)
	require.NoError(b, err)
	require.True(b, ok)
	readable, writable := r.chain.Readable, slices.Clone(r.chain.Writable)
	first := readable[0]
	b.ReportAllocs()
	for b.Loop() {
		readable[0] = first
		copy(r.chain.Writable[:cap(r.chain.Writable)], writable)
		r.chain.Readable, r.chain.Writable = readable, r.chain.Writable[:len(writable)]
		if err := d.w.frame(r); err != nil {
			b.Fatal(err)
		}
		if status, atDisk := d.w.execute(r); atDisk || status != virtioblk.StatusOK {
			b.Fatal(status)
		}
	}
}
