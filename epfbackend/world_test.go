package epfbackend

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/internal/blkio"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// worldSetup says what a world is like.
type worldSetup struct {
	link      loopback.Link
	latency   time.Duration // of the disk
	bandwidth int64         // of the disk, bytes a second; 0: any number
	packed    bool
	indirect  bool
	trapFree  bool
	depth     int
	size      int // bytes of a request
	fragment  int // bytes of a data segment; 0: all in one
	faults    *loopback.Faults

	kinds func(rng *rand.Rand) virtioblk.RequestType // of the next request
}

func onlyReads(*rand.Rand) virtioblk.RequestType  { return virtioblk.TypeIn }
func onlyWrites(*rand.Rand) virtioblk.RequestType { return virtioblk.TypeOut }

// world is a host, a link, a worker and a disk, all on one goroutine and in the time of
// the model: what the worker computes takes none of it, so whatever is measured is what
// the path itself costs, the same on each machine.
//
// The host looks at its ring whenever anything has been written to its memory, believes
// what it sees, and checks the data at once.
type world struct {
	worldSetup
	t      testing.TB
	clock  *loopback.Clock
	engine *loopback.Engine
	disk   *timedDisk
	mem    *vringtest.Memory
	slot   *loopback.Slot
	w      *worker
	drv    vringtest.Virtqueue
	rng    *rand.Rand

	requests []worldRequest
	byHead   map[uint16]*worldRequest
	left     int // requests that are still to be submitted
	done     int
	failed   int // of them, with a status other than OK
	mayFail  bool
	looking  bool
}

type worldRequest struct {
	header, status, memory []byte
	readable, writable     []vring.Segment
	addr, line             uint64
	kind                   virtioblk.RequestType
	area                   []byte // of the disk
	sector                 uint64
	want                   []byte // of a write
}

func newWorld(t testing.TB, s worldSetup) *world {
	d := &world{
		worldSetup: s, t: t, clock: loopback.NewClock(), rng: rand.New(rand.NewPCG(s.link.Shuffle, 7)),
		byHead: make(map[uint16]*worldRequest),
	}
	d.engine = loopback.NewEngine(d.clock, s.link)
	d.disk = &timedDisk{clock: d.clock, latency: s.latency, bandwidth: s.bandwidth, data: make([]byte, s.depth*s.size)}
	f, err := New(d.disk, Options{Poll: PollOff, Rings: RingBoth, TrapFree: s.trapFree, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	d.mem, err = vringtest.NewMemory(vringtest.Range{Base: 1 << 20, Size: 8<<20 + s.depth*(s.size+8192)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.mem.Close()) })
	d.slot, err = loopback.PlugEngine(f, s.faults, d.engine)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.slot.Unplug()) })
	require.NoError(t, rc.MapMemory(d.slot, d.mem))
	d.makeRequests()
	d.startWorker(f)
	return d
}

func (d *world) makeRequests() {
	cfg := vringtest.Config{Size: 256, Packed: d.packed, EventIdx: true}
	if d.indirect {
		cfg.Indirect = 256
	}
	var err error
	d.drv, err = vringtest.New(d.mem, cfg)
	require.NoError(d.t, err)
	d.requests = make([]worldRequest, d.depth)
	for i := range d.requests {
		r := &d.requests[i]
		r.line, err = d.mem.Alloc(64, 64)
		require.NoError(d.t, err)
		r.addr, err = d.mem.Alloc(d.size, 4096)
		require.NoError(d.t, err)
		r.header = d.mem.Bytes(r.line, virtioblk.HeaderLen)
		r.status = d.mem.Bytes(r.line+virtioblk.HeaderLen, virtioblk.StatusLen)
		r.memory = d.mem.Bytes(r.addr, d.size)
		r.area = d.disk.data[i*d.size : (i+1)*d.size]
		r.sector = uint64(i * d.size / virtioblk.SectorSize)
		r.want = make([]byte, d.size)
		fillRandom(d.rng, r.area)
	}
}

func fillRandom(rng *rand.Rand, p []byte) {
	for ; len(p) >= 8; p = p[8:] {
		binary.LittleEndian.PutUint64(p, rng.Uint64())
	}
}

func (d *world) startWorker(f *Function) {
	runtime.LockOSThread()
	d.t.Cleanup(runtime.UnlockOSThread)
	f.accepted = virtio.NewFeatures(virtio.IndirectDesc, virtio.EventIdx)
	if d.packed {
		f.accepted = f.accepted.With(virtio.RingPacked)
	}
	q := d.drv.Queue()
	var err error
	d.w, err = newWorker(f, 0, regfile.Queue{Size: q.Size, Desc: q.Desc, Driver: q.Driver, Device: q.Device}, running)
	require.NoError(d.t, err)
	require.NoError(d.t, d.w.open())
	d.t.Cleanup(d.w.close)
	d.clock.OnStep(d.look)
}

// submit makes a request available.
func (d *world) submit(r *worldRequest) {
	d.left--
	r.kind = d.kinds(d.rng)
	binary.LittleEndian.PutUint32(r.header, uint32(r.kind))
	binary.LittleEndian.PutUint64(r.header[8:], r.sector)
	r.status[0] = 0xff
	line := vring.Segment{Addr: r.line, Len: virtioblk.HeaderLen}
	r.readable, r.writable = append(r.readable[:0], line), r.writable[:0]
	switch r.kind {
	case virtioblk.TypeIn:
		for i := range r.memory {
			r.memory[i] = 0xee
		}
		r.writable = d.fragments(r.writable, r.addr)
	case virtioblk.TypeOut:
		fillRandom(d.rng, r.memory)
		copy(r.want, r.memory)
		r.readable = d.fragments(r.readable, r.addr)
	}
	r.writable = append(r.writable, vring.Segment{Addr: r.line + virtioblk.HeaderLen, Len: virtioblk.StatusLen})
	add := d.drv.Add
	if d.indirect {
		add = d.drv.AddIndirect
	}
	head, err := add(r.readable, r.writable)
	require.NoError(d.t, err)
	d.byHead[head] = r
}

func (d *world) fragments(list []vring.Segment, addr uint64) []vring.Segment {
	step := d.fragment
	if step == 0 {
		step = d.size
	}
	for off := 0; off < d.size; off += step {
		list = append(list, vring.Segment{Addr: addr + uint64(off), Len: uint32(min(step, d.size-off))})
	}
	return list
}

func (d *world) kick() {
	if d.drv.Kick() {
		d.w.f.bells[0].Ring()
	}
}

// look is the host.
func (d *world) look() {
	if d.looking {
		return
	}
	d.looking = true
	again := false
	for {
		u, ok, err := d.drv.Collect()
		require.NoError(d.t, err)
		if !ok {
			break
		}
		r := d.byHead[u.Head]
		d.check(r)
		d.done++
		if d.left > 0 {
			d.submit(r)
			again = true
		}
	}
	if again {
		d.kick()
	}
	d.looking = false
}

// check makes sure that a request that is used is done.
func (d *world) check(r *worldRequest) {
	switch status := virtioblk.Status(r.status[0]); {
	case d.mayFail && status == virtioblk.StatusIOErr:
		d.failed++
		copy(r.area, r.want) // unknown if it was a write
		return
	case status != virtioblk.StatusOK:
		d.t.Fatalf("used, and its status is %v (%v at sector %d)", status, r.kind, r.sector)
	}
	if r.kind == virtioblk.TypeIn && !bytes.Equal(r.memory, r.area) {
		d.t.Fatalf("used, and its data has not come (sector %d)", r.sector)
	}
	if r.kind == virtioblk.TypeOut && !bytes.Equal(r.want, r.area) {
		d.t.Fatalf("used, and not on the disk (sector %d)", r.sector)
	}
}

// run executes n requests, as many at a time as depth says.
func (d *world) run(n int) {
	d.left, d.done = n, 0
	for i := range min(n, d.depth) {
		d.submit(&d.requests[i])
	}
	d.kick()
	for d.done < n {
		d.step()
	}
}

func (d *world) step() {
	if !d.w.step() || d.w.broken {
		d.t.Fatalf("the worker has given up; %d requests done", d.done)
	}
}

// costs runs n requests, and returns what they took: the link's traffic and the time.
func (d *world) costs(n int) (c loopback.Traffic, took time.Duration) {
	before, start := d.engine.Traffic(), d.clock.Now()
	d.run(n)
	c = d.engine.Traffic()
	c.Moves -= before.Moves
	c.Segments -= before.Segments
	c.Reads -= before.Reads
	c.Writes -= before.Writes
	c.Interrupts -= before.Interrupts
	c.FromHost -= before.FromHost
	c.ToHost -= before.ToHost
	c.Packets -= before.Packets
	c.MovesByTime -= before.MovesByTime
	c.BusyTime -= before.BusyTime
	c.WaitTime -= before.WaitTime
	return c, d.clock.Now() - start
}

// timedDisk is a disk in memory that takes as long as it says, in the model's time. It
// does not let operations wait for each other but for its bandwidth.
type timedDisk struct {
	clock     *loopback.Clock
	latency   time.Duration
	bandwidth int64
	data      []byte
	freeAt    time.Duration

	issued int           // operations so far
	busy   int           // operations in flight
	since  time.Duration // busy changed last
	byTime time.Duration // the sum of the times that operations were in flight
}

func (s *timedDisk) change(n int, now time.Duration) {
	s.byTime += time.Duration(s.busy) * (now - s.since)
	s.busy, s.since = s.busy+n, now
}

func (s *timedDisk) Info() disk.Info {
	return disk.Info{Path: "timed", Kind: disk.Null, Size: int64(len(s.data)), LogicalBlock: 512, PhysicalBlock: 512, MinIO: 512}
}
func (s *timedDisk) Refresh() (bool, error) { return false, nil }
func (s *timedDisk) Flush() error           { return nil }
func (s *timedDisk) Close() error           { return nil }

func (s *timedDisk) NewEngine(_ disk.EngineKind, depth, doorbell int) (disk.Engine, error) {
	e := &timedEngine{s: s, bell: doorbell, other: -1}
	e.end = e.ended
	return e, nil
}

type timedEngine struct {
	s         *timedDisk
	bell      int
	other     int // see Listen
	buf       [8]byte
	started   []*disk.IO
	inFlight  []*disk.IO      // nil where there is room
	ends      []time.Duration // of those
	done, out []*disk.IO
	end       func(int)
}

func (e *timedEngine) Name() string        { return "timed" }
func (e *timedEngine) Ready() bool         { return len(e.done) > 0 }
func (e *timedEngine) Listen(bell int)     { e.other = bell }
func (e *timedEngine) Pin(...[]byte) error { return nil }
func (e *timedEngine) Start(io *disk.IO)   { e.started = append(e.started, io) }

func (e *timedEngine) Close() error {
	for e.s.busy > 0 && e.s.clock.Step() {
	}
	return nil
}

var errStalled = errors.New("nothing will ever happen")

func (e *timedEngine) Wait(block bool) ([]*disk.IO, bool, error) {
	for _, io := range e.started {
		e.issue(io)
	}
	e.started = e.started[:0]
	rung, woken := e.drain(e.bell), e.drain(e.other)
	for block && len(e.done) == 0 && !rung && !woken {
		if !e.s.clock.Step() {
			return nil, false, errStalled
		}
		rung, woken = e.drain(e.bell), e.drain(e.other)
	}
	e.done, e.out = e.out[:0], e.done
	return e.out, rung, nil
}

func (e *timedEngine) drain(bell int) bool {
	n, _ := unix.Read(bell, e.buf[:])
	return n > 0
}

func (e *timedEngine) issue(io *disk.IO) {
	i := 0
	for i < len(e.inFlight) && e.inFlight[i] != nil {
		i++
	}
	if i == len(e.inFlight) {
		e.inFlight, e.ends = append(e.inFlight, nil), append(e.ends, 0)
	}
	now := e.s.clock.Now()
	e.s.issued++
	e.s.change(1, now)
	at := max(now+e.s.latency, e.s.freeAt)
	if e.s.bandwidth > 0 {
		at += time.Duration(io.Length * int64(time.Second) / e.s.bandwidth)
	}
	e.s.freeAt, e.inFlight[i], e.ends[i] = at, io, at
	e.s.clock.After(at-now, e.end, i)
}

func (e *timedEngine) ended(i int) {
	io := e.inFlight[i]
	e.inFlight[i] = nil
	e.s.change(-1, e.ends[i])
	switch at := e.s.data[io.Offset:]; io.Op {
	case disk.Read:
		blkio.Scatter(io.Iov, 0, at[:io.Length])
	case disk.Write:
		blkio.Gather(at[:io.Length], io.Iov, 0)
	}
	io.Err = nil
	e.done = append(e.done, io)
}
