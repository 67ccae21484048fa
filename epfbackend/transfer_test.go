package epfbackend_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring"
)

func TestReadAndWrite(t *testing.T) {
	for name, s := range map[string]setup{
		"MSI-X":        {},
		"INTx":         {intx: true},
		"polled":       {polled: true},
		"no EVENT_IDX": {refuse: []virtio.Feature{virtio.EventIdx}},
		"no indirect":  {refuse: []virtio.Feature{virtio.IndirectDesc}, queue: rc.QueueConfig{Indirect: 64}},
		"indirect":     {queue: rc.QueueConfig{Indirect: 64}},
		"DMA":          {link: shuffled(1), queue: rc.QueueConfig{Indirect: 64}},
	} {
		t.Run(name, func(t *testing.T) {
			engines(t, func(t *testing.T, o epfbackend.Options) {
				s.options = o
				roundTrips(newRig(t, s))
			})
		})
	}
}

// roundTrips writes and reads requests of several sizes, and looks at the disk
// from outside.
func roundTrips(r *rig) {
	r.t.Helper()
	for i, n := range []int{sector, 4096, 65536, 1 << 20} {
		at, data := uint64(i*4096), pattern(n, byte(i))
		w := r.do(virtioblk.TypeOut, at, data)
		require.Equal(r.t, virtioblk.StatusOK, w.Status)
		require.EqualValues(r.t, 1, w.Written)
		r.must(virtioblk.TypeFlush, 0, nil)
		require.Equal(r.t, data, r.onDisk(int64(at)*sector, n))
		got := r.do(virtioblk.TypeIn, at, make([]byte, n))
		require.Equal(r.t, virtioblk.StatusOK, got.Status)
		require.Equal(r.t, data, got.Data())
		require.EqualValues(r.t, n+1, got.Written)
	}
}

func TestLoopDevices(t *testing.T) {
	for _, block := range []uint32{512, 4096} {
		engines(t, func(t *testing.T, o epfbackend.Options) {
			path := blktest.Loop(t, newFile(t, diskSize), blktest.LoopOptions{BlockSize: block})
			r := newRig(t, setup{path: path, options: o})
			roundTrips(r)
			c, err := r.dev.Config()
			require.NoError(t, err)
			require.EqualValues(t, block, c.BlkSize)
			require.EqualValues(t, diskSize/sector, c.Capacity)
		})
	}
}

// Bytes behind the header of a read are none of its data, and stay what they are.
func TestReadWithReadableBytes(t *testing.T) {
	for _, s := range []setup{{}, {faults: transfersOnly()}, {link: shuffled(1)}} {
		r := newRig(t, s)
		const most = 200 << 10
		disk := pattern(most, 5)
		r.must(virtioblk.TypeOut, 0, disk)
		theirs, err := r.mem.Alloc(most, 1)
		require.NoError(t, err)
		q := r.request(most)
		for _, readable := range []uint32{1, sector, 4096, most} {
			for _, writable := range []uint32{0, sector, 4096, most} {
				mine := pattern(most, 77)
				copy(r.mem.Bytes(theirs, most), mine)
				clear(q.Data())
				q.Type = virtioblk.TypeIn
				in := []vring.Segment{{Addr: q.HeaderAddr(), Len: virtioblk.HeaderLen}, {Addr: theirs, Len: readable}}
				out := []vring.Segment{{Addr: q.DataAddr(), Len: writable}, {Addr: q.StatusAddr(), Len: virtioblk.StatusLen}}
				if writable == 0 {
					out = out[1:]
				}
				require.NoError(t, r.q.SubmitChain(q, in, out))
				r.finishWith(q, virtioblk.StatusOK)
				require.Equal(t, writable+virtioblk.StatusLen, q.Written)
				require.True(t, bytes.Equal(disk[:writable], q.Data()[:writable]), "%d bytes behind the header, %d read", readable, writable)
				require.True(t, bytes.Equal(make([]byte, most-writable), q.Data()[writable:]))
				require.True(t, bytes.Equal(mine, r.mem.Bytes(theirs, most)), "the device wrote into what it may only read")
			}
		}
	}
}

// How a request is cut into descriptors means nothing (virtio 1.4 §2.7.4): the
// parts may be split anywhere, share descriptors, and lie anywhere.
func TestAnySplit(t *testing.T) {
	for _, s := range []setup{{}, {faults: transfersOnly()}, {link: shuffled(1)}} {
		engines(t, func(t *testing.T, o epfbackend.Options) {
			s.options, s.queue = o, rc.QueueConfig{Indirect: 200}
			r := newRig(t, s)
			rng := rand.New(rand.NewPCG(1, 2))
			buf := r.request(80 << 10)
			for n := range 300 {
				anySplit(r, buf, rng, byte(n))
			}
		})
	}
}

func anySplit(r *rig, q *rc.Request, rng *rand.Rand, seed byte) {
	t := r.t
	n := sector * (1 + rng.IntN(96))
	shift := rng.IntN(2) * rng.IntN(513)
	addr := q.DataAddr() + uint64(shift)
	data := q.Data()[shift : shift+n]
	q.Sector = uint64(rng.IntN((diskSize - n) / sector))

	// OUT: header and data may share a descriptor if they lie side by side.
	q.Type = virtioblk.TypeOut
	want := pattern(n, seed)
	copy(data, want)
	readable := []vring.Segment{{Addr: q.HeaderAddr(), Len: virtioblk.HeaderLen}, {Addr: addr, Len: uint32(n)}}
	if shift == 0 && rng.IntN(2) == 0 {
		readable = []vring.Segment{{Addr: q.HeaderAddr(), Len: uint32(virtioblk.HeaderLen + n)}}
	}
	status := []vring.Segment{{Addr: q.StatusAddr(), Len: 1}}
	submit(r, q, rng, cut(rng, readable), status)
	require.EqualValues(t, 1, q.Written)

	// IN: the status may end the data's descriptor.
	q.Type = virtioblk.TypeIn
	clear(q.Data())
	header := []vring.Segment{{Addr: q.HeaderAddr(), Len: virtioblk.HeaderLen}}
	writable := []vring.Segment{{Addr: addr, Len: uint32(n)}, status[0]}
	if rng.IntN(2) == 0 { // so that data and status lie side by side
		addr = q.StatusAddr() - uint64(n)
		data = q.Data()[len(q.Data())-n:]
		writable = []vring.Segment{{Addr: addr, Len: uint32(n + 1)}}
	}
	submit(r, q, rng, cut(rng, header), cut(rng, writable))
	require.True(t, bytes.Equal(want, data), "%d bytes at sector %d", n, q.Sector)
	require.EqualValues(t, n+1, q.Written)
}

func submit(r *rig, q *rc.Request, rng *rand.Rand, readable, writable []vring.Segment) {
	require.NoError(r.t, r.q.SubmitChain(q, readable, writable))
	_, err := r.q.Finish(q)
	require.NoError(r.t, err)
	require.Equal(r.t, virtioblk.StatusOK, q.Status)
}

// cut cuts segments into more of them, some of them empty.
func cut(rng *rand.Rand, in []vring.Segment) (out []vring.Segment) {
	for _, s := range in {
		for range rng.IntN(12) {
			n := uint32(rng.IntN(int(s.Len) + 1))
			if rng.IntN(2) == 0 {
				n = min(n, uint32(rng.IntN(5)))
			}
			out = append(out, vring.Segment{Addr: s.Addr, Len: n})
			s.Addr, s.Len = s.Addr+uint64(n), s.Len-n
		}
		out = append(out, s)
	}
	return out
}

func TestOutsideTheDisk(t *testing.T) {
	const end = diskSize / sector
	r := newRig(t, setup{})
	for _, c := range []struct {
		at uint64
		n  int
	}{
		{end, sector},
		{end - 1, 2 * sector},
		{end + 1, sector},
		{0, diskSize + sector},
		{1 << 40, sector},
		{1 << 55, sector},
		{math.MaxUint64, sector},
		{math.MaxUint64/sector + 1, sector},
		{0, 1},
		{0, sector - 1},
		{0, sector + 1},
		{end, 1},
		{end - 1, sector + 1},
		{end + 1, 0},
	} {
		for _, kind := range []virtioblk.RequestType{virtioblk.TypeIn, virtioblk.TypeOut} {
			r.fails(virtioblk.StatusIOErr, kind, c.at, make([]byte, c.n))
		}
	}
	r.must(virtioblk.TypeIn, end-1, make([]byte, sector))
	r.must(virtioblk.TypeOut, end-1, make([]byte, sector))
	r.must(virtioblk.TypeIn, end, nil)
	r.must(virtioblk.TypeOut, end, nil)
	require.Equal(t, make([]byte, diskSize), r.onDisk(0, diskSize))
}

func TestHeaderTooShort(t *testing.T) {
	r := newRig(t, setup{})
	q := r.request(sector)
	for n := range uint32(virtioblk.HeaderLen) {
		for _, data := range []uint32{0, sector} {
			writable := []vring.Segment{{Addr: q.DataAddr(), Len: data}, {Addr: q.StatusAddr(), Len: 1}}
			require.NoError(t, r.q.SubmitChain(q, []vring.Segment{{Addr: q.HeaderAddr(), Len: n}}, writable))
			status, err := r.q.Finish(q)
			require.NoError(t, err)
			require.Equal(t, virtioblk.StatusIOErr, status)
		}
	}
	r.alive()
}

// What is reported as written has been written without a gap (§2.7.8.2).
func TestWrittenLength(t *testing.T) {
	r := newRig(t, setup{options: epfbackend.Options{Serial: "S"}})
	for _, c := range []struct {
		name    string
		kind    virtioblk.RequestType
		at      uint64
		n       uint32
		written uint32
	}{
		{"read", virtioblk.TypeIn, 0, sector, sector + 1},
		{"failed read", virtioblk.TypeIn, math.MaxUint64, sector, 0},
		{"write with room that is not used", virtioblk.TypeOut, 0, sector, 0},
		{"exact identifier", virtioblk.TypeGetID, 0, virtioblk.IDLen, virtioblk.IDLen + 1},
		{"short identifier", virtioblk.TypeGetID, 0, 7, 8},
		{"identifier with room behind it", virtioblk.TypeGetID, 0, 64, virtioblk.IDLen},
		{"flush", virtioblk.TypeFlush, 0, 0, 1},
		{"unknown", 999, 0, 0, 1},
		{"unknown with room", 999, 0, 100, 0},
	} {
		q := r.request(sector)
		q.Type, q.Sector = c.kind, c.at
		writable := []vring.Segment{{Addr: q.DataAddr(), Len: c.n}, {Addr: q.StatusAddr(), Len: 1}}
		require.NoError(t, r.q.SubmitChain(q, []vring.Segment{{Addr: q.HeaderAddr(), Len: virtioblk.HeaderLen}}, writable))
		_, err := r.q.Finish(q)
		require.NoError(t, err)
		require.Equal(t, c.written, q.Written, c.name)
	}
}
