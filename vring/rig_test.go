package vring_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// rig is both sides of one virtqueue.
type rig struct {
	mem *vringtest.Memory
	drv vringtest.Virtqueue
	q   vring.Queue
}

// split returns the driver of a split virtqueue, to write into the ring at will.
func (r *rig) split() *vringtest.Driver { return r.drv.(*vringtest.Driver) }

// packed is split for a packed virtqueue.
func (r *rig) packed() *vringtest.PackedDriver { return r.drv.(*vringtest.PackedDriver) }

func newMemory(t testing.TB, ranges ...vringtest.Range) *vringtest.Memory {
	t.Helper()
	mem, err := vringtest.NewMemory(ranges...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mem.Close()) })
	return mem
}

func newRig(t testing.TB, cfg vringtest.Config, transfers bool) *rig {
	t.Helper()
	size := 1<<16 + cfg.Size*(64+16*cfg.Indirect)
	mem := newMemory(t, vringtest.Range{Base: 0x10000, Size: (size + 4095) &^ 4095})
	mem.TransfersOnly(transfers)
	return rigIn(t, mem, cfg)
}

// rigIn is newRig in memory that is there.
func rigIn(t testing.TB, mem *vringtest.Memory, cfg vringtest.Config) *rig {
	t.Helper()
	drv, err := vringtest.New(mem, cfg)
	require.NoError(t, err)
	q, err := newQueue(mem, cfg.Packed, drv.Queue())
	require.NoError(t, err)
	return &rig{mem, drv, q}
}

func newQueue(mem vring.Memory, packed bool, cfg vring.Config) (q vring.Queue, err error) {
	cfg.Deferred = 64
	if packed {
		q, err = vring.NewPacked(mem, cfg)
	} else {
		q, err = vring.NewSplit(mem, cfg)
	}
	return &completing{Queue: q, mem: mem}, err
}

// completing is a queue whose user reads tables that it is left to read.
type completing struct {
	vring.Queue
	mem    vring.Memory
	table  [64]byte
	failed int // whose table was malformed, which stay in flight
}

func (q *completing) InFlight() int { return q.Queue.InFlight() - q.failed }

func (q *completing) Next(c *vring.Chain) (ok bool, err error) {
	ok, err = q.Queue.Next(c)
	if !ok || err != nil || c.Table.Len == 0 {
		return ok, err
	}
	b := q.table[:c.Table.Len]
	if err := q.mem.ReadAt(b, c.Table.Addr); err != nil {
		return false, err
	}
	if ok, err = q.Complete(c, b); !ok {
		q.failed++
	}
	return ok, err
}

// bothWays runs a test on lent memory and on memory reached by transfers.
func bothWays(t *testing.T, f func(t *testing.T, transfers bool)) {
	t.Run("lent", func(t *testing.T) { f(t, false) })
	t.Run("transfers", func(t *testing.T) { f(t, true) })
}

// eachFormat runs a test on split and on packed virtqueues.
func eachFormat(t *testing.T, f func(t *testing.T, packed bool)) {
	t.Run("split", func(t *testing.T) { f(t, false) })
	t.Run("packed", func(t *testing.T) { f(t, true) })
}

// eachWay is eachFormat and bothWays.
func eachWay(t *testing.T, f func(t *testing.T, packed, transfers bool)) {
	eachFormat(t, func(t *testing.T, packed bool) {
		bothWays(t, func(t *testing.T, transfers bool) { f(t, packed, transfers) })
	})
}

// nearWrap is a start n chains before the positions of both layouts wrap.
func nearWrap(packed bool, size, n int) uint16 {
	if packed {
		return 1<<15 | uint16(size-n)
	}
	return uint16(0x10000 - n)
}

func seg(addr uint64, n uint32) vring.Segment { return vring.Segment{Addr: addr, Len: n} }

func segs(list ...vring.Segment) []vring.Segment { return list }

func (r *rig) add(t testing.TB, readable, writable []vring.Segment) uint16 {
	t.Helper()
	head, err := r.drv.Add(readable, writable)
	require.NoError(t, err)
	return head
}

func (r *rig) next(t testing.TB, c *vring.Chain) {
	t.Helper()
	ok, err := r.q.Next(c)
	require.NoError(t, err)
	require.True(t, ok)
}

func (r *rig) collect(t testing.TB) vringtest.Used {
	t.Helper()
	u, ok, err := r.drv.Collect()
	require.NoError(t, err)
	require.True(t, ok)
	return u
}

// recorder notes the transfers a queue makes.
type recorder struct {
	vring.Memory
	names map[uint64]string
	log   []string
}

func (m *recorder) Lend(uint64, int, vring.Access) ([]byte, error) { return nil, nil }

func (m *recorder) ReadAt(p []byte, addr uint64) error {
	m.note("read", addr, len(p))
	return m.Memory.ReadAt(p, addr)
}

func (m *recorder) WriteAt(p []byte, addr uint64) error {
	m.note("write", addr, len(p))
	return m.Memory.WriteAt(p, addr)
}

func (m *recorder) note(what string, addr uint64, n int) {
	best, name := uint64(0), ""
	for base, s := range m.names {
		if base <= addr && base >= best {
			best, name = base, s
		}
	}
	m.log = append(m.log, fmt.Sprintf("%s %s+%d:%d", what, name, addr-best, n))
}

func (m *recorder) take() []string {
	log := m.log
	m.log = nil
	return log
}
