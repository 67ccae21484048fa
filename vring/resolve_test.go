package vring_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// Host memory goes away under a live queue, and comes back.
func TestMemoryComesAndGoes(t *testing.T) {
	eachWay(t, func(t *testing.T, packed, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 8, EventIdx: true}, transfers)
		var first, second vring.Chain
		r.add(t, segs(seg(0x1000, 1)), nil)
		r.drv.Kick()
		r.next(t, &first)
		r.add(t, segs(seg(0x2000, 2)), nil)
		r.drv.Kick()

		ram := r.mem.Regions()[0]
		ram.Hide(true)
		require.ErrorIs(t, r.q.Resolve(), vring.ErrUnmapped)
		for range 2 {
			ok, err := r.q.Next(&second)
			require.False(t, ok)
			require.ErrorIs(t, err, vring.ErrUnmapped)
			require.False(t, vring.IsMalformed(err))
			_, err = r.q.EnableNotifications()
			require.ErrorIs(t, err, vring.ErrUnmapped)
		}
		r.q.Push(&first, 7)
		_, err := r.q.Publish()
		require.ErrorIs(t, err, vring.ErrUnmapped)
		_, ok, err := r.drv.Collect()
		require.NoError(t, err)
		require.False(t, ok)

		ram.Hide(false)
		_, err = r.q.Publish()
		require.ErrorIs(t, err, vring.ErrUnmapped, "only Resolve looks again")
		r.mem.TransfersOnly(!transfers) // and it may have become another kind of memory
		require.NoError(t, r.q.Resolve())
		interrupt, err := r.q.Publish()
		require.NoError(t, err)
		require.True(t, interrupt)
		require.Equal(t, vringtest.Used{Head: 0, Written: 7}, r.collect(t))
		r.next(t, &second)
		require.Equal(t, segs(seg(0x2000, 2)), second.Readable)
	})
}

// What was read ahead is neither lost nor fetched twice.
func TestResolveKeepsThePosition(t *testing.T) {
	eachWay(t, func(t *testing.T, packed, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 8, Start: nearWrap(packed, 8, 3)}, transfers)
		var c vring.Chain
		for i := range uint64(6) {
			r.add(t, segs(seg(i<<12, 1)), nil)
		}
		r.drv.Kick()
		for i := range uint64(6) {
			require.NoError(t, r.q.Resolve())
			r.next(t, &c)
			require.Equal(t, segs(seg(i<<12, 1)), c.Readable)
		}
		ok, err := r.q.Next(&c)
		require.NoError(t, err)
		require.False(t, ok)
	})
}

// Each area, and an indirect table, lies in a region of its own, and each of
// them goes away in turn while the others stay. No call may lose anything: when
// the region is back, the same call succeeds.
func TestFailedSplitCallsCanBeRepeated(t *testing.T) {
	for name, hide := range map[string]int{"descriptors": 0, "available ring": 1, "used ring": 2, "table": 3} {
		t.Run(name, func(t *testing.T) {
			mem := newMemory(t,
				vringtest.Range{Base: 0x10000, Size: 4096}, vringtest.Range{Base: 0x20000, Size: 4096},
				vringtest.Range{Base: 0x30000, Size: 4096}, vringtest.Range{Base: 0x40000, Size: 4096})
			mem.TransfersOnly(true)
			put := func(addr uint64, b ...byte) { copy(mem.Bytes(addr, len(b)), b) }
			put(0x10000, 0, 0, 4, 0, 0, 0, 0, 0, 16, 0, 0, 0, indirect, 0, 0, 0)
			put(0x40000, 0, 0, 9, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0)
			put(0x20000, 0, 0, 1, 0, 0, 0)
			q, err := vring.NewSplit(mem, vring.Config{
				Size: 4, Desc: 0x10000, Driver: 0x20000, Device: 0x30000, EventIdx: true, Indirect: true,
			})
			require.NoError(t, err)
			failed := 0
			twice := func(f func() error) { failed += callTwice(t, mem.Regions()[hide], f) }

			var c vring.Chain
			var ok, interrupt, more bool
			twice(func() (err error) { ok, err = q.Next(&c); return })
			require.True(t, ok)
			require.Equal(t, segs(seg(0x90000, 2)), c.Readable)
			require.Equal(t, 1, q.InFlight())
			q.Push(&c, 5)
			twice(func() (err error) { interrupt, err = q.Publish(); return })
			require.True(t, interrupt, "a decision that could not be made in time is for the interrupt")
			require.Equal(t, []byte{0, 0, 1, 0, 0, 0, 0, 0, 5, 0, 0, 0}, mem.Bytes(0x30000, 12))
			twice(func() (err error) { more, err = q.EnableNotifications(); return })
			require.False(t, more)
			require.Equal(t, []byte{1, 0}, mem.Bytes(0x30000+4+4*8, 2))
			require.NotZero(t, failed, "the region was needed")

			interrupt, err = q.Publish()
			require.NoError(t, err)
			require.False(t, interrupt, "one batch, one decision")
		})
	}
}

func TestFailedPackedCallsCanBeRepeated(t *testing.T) {
	for name, hide := range map[string]int{"ring": 0, "driver area": 1, "device area": 2, "table": 3} {
		t.Run(name, func(t *testing.T) {
			mem := newMemory(t,
				vringtest.Range{Base: 0x10000, Size: 4096}, vringtest.Range{Base: 0x20000, Size: 4096},
				vringtest.Range{Base: 0x30000, Size: 4096}, vringtest.Range{Base: 0x40000, Size: 4096})
			mem.TransfersOnly(true)
			put := func(addr uint64, b ...byte) { copy(mem.Bytes(addr, len(b)), b) }
			put(0x10000, 0, 0, 4, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0x34, 0x12, indirect|avail, 0)
			put(0x10010, 0, 0, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0x35, 0x12, avail, 0)
			put(0x40000, 0, 0, 9, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0)
			put(0x20000, 1, 0x80, 2, 0)
			q, err := vring.NewPacked(mem, vring.Config{
				Size: 4, Desc: 0x10000, Driver: 0x20000, Device: 0x30000, EventIdx: true, Indirect: true,
			})
			require.NoError(t, err)
			failed := 0
			twice := func(f func() error) { failed += callTwice(t, mem.Regions()[hide], f) }

			var c, d vring.Chain
			var ok, interrupt, more bool
			twice(func() (err error) { ok, err = q.Next(&c); return })
			require.True(t, ok)
			require.Equal(t, segs(seg(0x90000, 2)), c.Readable)
			twice(func() (err error) { ok, err = q.Next(&d); return })
			require.True(t, ok)
			require.Equal(t, segs(seg(0x70000, 1)), d.Readable)
			require.Equal(t, 2, q.InFlight())
			q.Push(&c, 5)
			q.Push(&d, 0)
			twice(func() (err error) { interrupt, err = q.Publish(); return })
			require.True(t, interrupt, "a decision that could not be made in time is for the interrupt")
			require.Equal(t, []byte{5, 0, 0, 0, 0x34, 0x12, write | avail, 0x80}, mem.Bytes(0x10008, 8))
			require.Equal(t, []byte{0, 0, 0, 0, 0x35, 0x12, avail, 0x80}, mem.Bytes(0x10018, 8))
			twice(func() (err error) { more, err = q.EnableNotifications(); return })
			require.False(t, more)
			require.Equal(t, []byte{2, 0x80, 2, 0}, mem.Bytes(0x30000, 4))
			require.NotZero(t, failed, "the region was needed")

			interrupt, err = q.Publish()
			require.NoError(t, err)
			require.False(t, interrupt, "one batch, one decision")
		})
	}
}

// callTwice calls f while the region is hidden. If that fails, it returns 1, and
// the same call has to succeed when the region is back.
func callTwice(t *testing.T, region *vringtest.Region, f func() error) (failed int) {
	region.Hide(true)
	err := f()
	region.Hide(false)
	if err == nil {
		return 0
	}
	require.ErrorIs(t, err, vring.ErrUnmapped)
	require.NoError(t, f())
	return 1
}

// Memory that cannot be accessed atomically where it was lent is reached by
// transfers instead.
func TestOddlyLentMemory(t *testing.T) {
	eachFormat(t, func(t *testing.T, packed bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 4}, false)
		var err error
		r.q, err = newQueue(oddly{r.mem}, packed, r.drv.Queue())
		require.NoError(t, err)
		r.add(t, segs(seg(1, 1)), nil)
		r.drv.Kick()
		var c vring.Chain
		r.next(t, &c)
		r.q.Push(&c, 3)
		_, err = r.q.Publish()
		require.NoError(t, err)
		require.Equal(t, vringtest.Used{Head: 0, Written: 3}, r.collect(t))
	})
}

// oddly lends memory at odd places, and not the memory that was asked for: whoever
// uses it will see.
type oddly struct{ vring.Memory }

func (oddly) Lend(_ uint64, n int, _ vring.Access) ([]byte, error) {
	return make([]byte, n+64)[1:], nil
}
