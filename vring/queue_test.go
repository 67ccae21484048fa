package vring_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// The largest queue, filled and emptied in one batch, around the wrap.
func TestLargestQueue(t *testing.T) {
	eachWay(t, func(t *testing.T, packed, transfers bool) {
		const size = vring.MaxSize
		r := newRig(t, vringtest.Config{
			Packed: packed, Size: size, EventIdx: true, Start: nearWrap(packed, size, 16),
		}, transfers)
		data := segs(seg(0x1000, 1))
		chains := make([]vring.Chain, size)
		for range 3 {
			more, err := r.q.EnableNotifications()
			require.NoError(t, err)
			require.False(t, more)
			require.False(t, r.drv.EnableInterrupts())
			r.fillAndEmpty(t, data, chains)
		}
	})
}

func (r *rig) fillAndEmpty(t *testing.T, data []vring.Segment, chains []vring.Chain) {
	heads := make([]uint16, len(chains))
	for i := range heads {
		heads[i] = r.add(t, data, nil)
	}
	require.Zero(t, r.drv.Free())
	require.True(t, r.drv.Kick())
	for i := range chains {
		r.next(t, &chains[i])
		require.Equal(t, heads[i], chains[i].Head)
	}
	ok, err := r.q.Next(new(vring.Chain))
	require.NoError(t, err)
	require.False(t, ok)
	require.Equal(t, len(chains), r.q.InFlight())
	for i := range chains {
		r.q.Push(&chains[i], uint32(heads[i])+1)
	}
	interrupt, err := r.q.Publish()
	require.NoError(t, err)
	require.True(t, interrupt)
	for _, head := range heads {
		require.Equal(t, vringtest.Used{Head: head, Written: uint32(head) + 1}, r.collect(t))
	}
}

func TestZeroLengthPartsAreLeftOut(t *testing.T) {
	eachWay(t, func(t *testing.T, packed, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 8}, transfers)
		r.add(t, segs(seg(0x1000, 0), seg(0x1000, 8), seg(1<<64-1, 0)), segs(seg(0, 0), seg(0x2000, 1)))
		r.drv.Kick()
		var c vring.Chain
		r.next(t, &c)
		require.Equal(t, segs(seg(0x1000, 8)), c.Readable)
		require.Equal(t, segs(seg(0x2000, 1)), c.Writable)
		r.q.Push(&c, 1)
		_, err := r.q.Publish()
		require.NoError(t, err)
		r.collect(t)
		r.add(t, segs(seg(0x1000, 1)), nil)
		r.drv.Kick()
		r.next(t, &c)
	})
}

// The last byte but one of the address space is the last that a buffer may have;
// an end that wraps to 0 would fool whoever compares ends.
func TestBufferAtTheEndOfTheAddressSpace(t *testing.T) {
	eachFormat(t, func(t *testing.T, packed bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 8}, false)
		r.add(t, segs(seg(1<<64-9, 8)), nil)
		r.drv.Kick()
		var c vring.Chain
		r.next(t, &c)
		require.Equal(t, segs(seg(1<<64-9, 8)), c.Readable)
	})
}

func TestMaxChain(t *testing.T) {
	eachFormat(t, func(t *testing.T, packed bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 4, Indirect: 10}, false)
		long := make([]vring.Segment, 10)
		for i := range long {
			long[i] = seg(uint64(i)<<12, 1)
		}
		_, err := r.drv.AddIndirect(long, nil)
		require.NoError(t, err)
		r.drv.Kick()
		var c vring.Chain
		r.next(t, &c)
		require.Equal(t, long, c.Readable, "a table may be longer than the queue if the device says so")

		cfg := r.drv.Queue()
		cfg.MaxChain = 9
		q, err := newQueue(r.mem, packed, cfg)
		require.NoError(t, err)
		_, err = q.Next(&c)
		require.ErrorIs(t, err, vring.ErrIndirectTooLong)
	})
}

func TestPushWithoutChainPanics(t *testing.T) {
	eachFormat(t, func(t *testing.T, packed bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 4}, false)
		require.Panics(t, func() { r.q.Push(new(vring.Chain), 0) })
		r.add(t, segs(seg(0x1000, 1)), nil)
		r.drv.Kick()
		var c vring.Chain
		r.next(t, &c)
		r.q.Push(&c, 0)
		require.Panics(t, func() { r.q.Push(&c, 0) })
	})
}

// A local copy of a descriptor must not outlive the round in which it was read.
func TestReusedDescriptorsAreReadAgain(t *testing.T) {
	eachFormat(t, func(t *testing.T, packed bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 8}, true)
		var c vring.Chain
		for i := range uint64(20) {
			r.add(t, segs(seg(i<<12, 1)), nil)
			r.drv.Kick()
			r.next(t, &c)
			require.Equal(t, segs(seg(i<<12, 1)), c.Readable)
			r.q.Push(&c, 0)
			_, err := r.q.Publish()
			require.NoError(t, err)
			r.collect(t)
		}
	})
}
