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
	drv *vringtest.Driver
	q   *vring.Split
}

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
	drv, err := vringtest.NewDriver(mem, cfg)
	require.NoError(t, err)
	q, err := vring.NewSplit(mem, drv.Queue())
	require.NoError(t, err)
	return &rig{mem, drv, q}
}

// bothWays runs a test on lent memory and on memory reached by transfers.
func bothWays(t *testing.T, f func(t *testing.T, transfers bool)) {
	t.Run("lent", func(t *testing.T) { f(t, false) })
	t.Run("transfers", func(t *testing.T) { f(t, true) })
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
