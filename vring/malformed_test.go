package vring_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

const (
	next     = vringtest.FlagNext
	write    = vringtest.FlagWrite
	indirect = vringtest.FlagIndirect
)

// Each case is a split ring of 8 descriptors, chain 0 good and in flight, whose driver
// then does something wrong with chain 1. Tables hold 8 descriptors.
var malformedSplit = []struct {
	name  string
	do    func(d *vringtest.Driver)
	want  error
	going bool // the queue goes on
}{
	{"loop of one", func(d *vringtest.Driver) {
		d.SetDesc(1, 0x1000, 1, next, 1)
	}, vring.ErrLoop, false},
	{"loop of all", func(d *vringtest.Driver) {
		for i := range uint16(8) {
			d.SetDesc(i, 0x1000, 1, next, (i+1)%8)
		}
	}, vring.ErrLoop, false},
	{"loop of nothing", func(d *vringtest.Driver) {
		d.SetDesc(1, 0x1000, 0, next, 2)
		d.SetDesc(2, 0x1000, 0, next, 1)
	}, vring.ErrLoop, false},
	{"loop in a table", func(d *vringtest.Driver) {
		d.SetDesc(1, d.Table(1), 32, indirect, 0)
		d.SetTableDesc(1, 0, 0x1000, 1, next, 1)
		d.SetTableDesc(1, 1, 0x1000, 1, next, 0)
	}, vring.ErrLoop, false},
	{"head out of range", func(d *vringtest.Driver) {
		d.SetAvail(1, 8)
	}, vring.ErrHead, false},
	{"head far out of range", func(d *vringtest.Driver) {
		d.SetAvail(1, 0xffff)
	}, vring.ErrHead, false},
	{"next out of range", func(d *vringtest.Driver) {
		d.SetDesc(1, 0x1000, 1, next, 8)
	}, vring.ErrNext, false},
	{"next out of range in a table", func(d *vringtest.Driver) {
		d.SetDesc(1, d.Table(1), 32, indirect, 0)
		d.SetTableDesc(1, 0, 0x1000, 1, next, 2)
	}, vring.ErrNext, false},
	{"chain too long", func(d *vringtest.Driver) {
		d.SetDesc(1, 0x1000, 1, next, 2)
		d.SetDesc(2, d.Table(2), 8*16, indirect, 0)
		for i := range uint16(8) {
			d.SetTableDesc(2, i, 0x1000, 1, next*min(1, 7-i), i+1)
		}
	}, vring.ErrTooLong, false},
	{"readable after writable", func(d *vringtest.Driver) {
		d.SetDesc(1, 0x1000, 1, write|next, 2)
		d.SetDesc(2, 0x2000, 1, 0, 0)
	}, vring.ErrOrder, false},
	{"readable after writable, in a table", func(d *vringtest.Driver) {
		d.SetDesc(1, 0x1000, 1, write|next, 2)
		d.SetDesc(2, d.Table(2), 16, indirect, 0)
		d.SetTableDesc(2, 0, 0x1000, 1, 0, 0)
	}, vring.ErrOrder, false},
	{"buffer wraps around", func(d *vringtest.Driver) {
		d.SetDesc(1, 1<<64-16, 17, 0, 0)
	}, vring.ErrAddress, false},
	{"buffer ends at 2^64", func(d *vringtest.Driver) {
		d.SetDesc(1, 1<<64-16, 16, 0, 0)
	}, vring.ErrAddress, false},
	{"table wraps around", func(d *vringtest.Driver) {
		d.SetDesc(1, 1<<64-16, 32, indirect, 0)
	}, vring.ErrAddress, false},
	{"table of no length", func(d *vringtest.Driver) {
		d.SetDesc(1, d.Table(1), 0, indirect, 0)
	}, vring.ErrIndirectLength, false},
	{"table of odd length", func(d *vringtest.Driver) {
		d.SetDesc(1, d.Table(1), 24, indirect, 0)
	}, vring.ErrIndirectLength, false},
	{"table too long", func(d *vringtest.Driver) {
		d.SetDesc(1, d.Table(1), 9*16, indirect, 0)
	}, vring.ErrIndirectTooLong, false},
	{"table of 4 GiB", func(d *vringtest.Driver) {
		d.SetDesc(1, d.Table(1), 0xfffffff0, indirect, 0)
	}, vring.ErrIndirectTooLong, false},
	{"table inside a chain", func(d *vringtest.Driver) {
		d.SetDesc(1, d.Table(1), 16, indirect|next, 2)
	}, vring.ErrIndirectNext, false},
	{"table inside a table", func(d *vringtest.Driver) {
		d.SetDesc(1, d.Table(1), 16, indirect, 0)
		d.SetTableDesc(1, 0, d.Table(1), 16, indirect, 0)
	}, vring.ErrIndirectNested, false},
	{"index too far ahead", func(d *vringtest.Driver) {
		d.SetAvailIndex(9)
	}, vring.ErrAvailIndex, false},
	{"index behind", func(d *vringtest.Driver) {
		d.SetAvailIndex(0)
	}, vring.ErrAvailIndex, false},
	{"empty chain", func(d *vringtest.Driver) {
		d.SetDesc(1, 0x1000, 0, next, 2)
		d.SetDesc(2, 0x1000, 0, write, 0)
	}, vring.ErrEmpty, true},
	{"total length", func(d *vringtest.Driver) {
		d.SetDesc(1, 0x1000, 0xffffffff, next, 2)
		d.SetDesc(2, 0x1000, 1, write, 0)
	}, vring.ErrLength, true},
}

func TestMalformedSplit(t *testing.T) {
	for _, c := range malformedSplit {
		t.Run(c.name, func(t *testing.T) {
			testMalformed(t, false, func(r *rig) { c.do(r.split()) }, c.want, c.going)
		})
	}
}

func testMalformed(t *testing.T, packed bool, do func(r *rig), want error, going bool) {
	bothWays(t, func(t *testing.T, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 8, Indirect: 8}, transfers)
		var first, second vring.Chain
		require.Equal(t, uint16(0), r.add(t, segs(seg(0x1000, 16)), nil))
		r.drv.Kick()
		r.next(t, &first)
		require.Equal(t, uint16(1), r.add(t, segs(seg(0x1000, 16)), nil))
		r.drv.Kick()
		do(r)

		ok, err := r.q.Next(&second)
		require.ErrorIs(t, err, want)
		require.True(t, vring.IsMalformed(err))
		require.Equal(t, going, ok)
		if going {
			r.finishesBoth(t, &first, &second)
		} else {
			r.hasStopped(t, &first, &second, err)
		}
	})
}

func (r *rig) finishesBoth(t *testing.T, first, second *vring.Chain) {
	require.Equal(t, 2, r.q.InFlight())
	require.Equal(t, uint16(1), second.Head)
	r.q.Push(second, 0)
	r.q.Push(first, 0)
	_, err := r.q.Publish()
	require.NoError(t, err)
	require.Equal(t, uint16(1), r.collect(t).Head)
	require.Equal(t, uint16(0), r.collect(t).Head)
	r.add(t, segs(seg(0x1000, 16)), nil)
	r.drv.Kick()
	r.next(t, second)
}

func (r *rig) hasStopped(t *testing.T, first, second *vring.Chain, why error) {
	require.Equal(t, 1, r.q.InFlight(), "the chain was not fetched")
	require.Empty(t, second.Readable)
	require.Empty(t, second.Writable)
	require.NoError(t, r.q.Resolve())
	ok, err := r.q.Next(second)
	require.False(t, ok)
	require.Equal(t, why, err, "a stopped queue stays stopped")
	_, err = r.q.EnableNotifications()
	require.Equal(t, why, err)
	require.Equal(t, why, r.q.DisableNotifications())
	r.q.Push(first, 0)
	_, err = r.q.Publish()
	require.NoError(t, err, "what was in flight can be finished")
	require.Equal(t, uint16(0), r.collect(t).Head)
	_, ok, err = r.drv.Collect()
	require.NoError(t, err)
	require.False(t, ok)
}

func TestIndirectWithoutTheFeature(t *testing.T) {
	eachFormat(t, func(t *testing.T, packed bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 8, Indirect: 8}, false)
		_, err := r.drv.AddIndirect(segs(seg(0x1000, 16)), nil)
		require.NoError(t, err)
		r.drv.Kick()
		cfg := r.drv.Queue()
		cfg.Indirect = false
		q, err := newQueue(r.mem, packed, cfg)
		require.NoError(t, err)
		ok, err := q.Next(new(vring.Chain))
		require.False(t, ok)
		require.ErrorIs(t, err, vring.ErrIndirect)
	})
}

// A driver that makes chains available again which are still in flight would
// have the device hold more chains than the queue has descriptors.
func TestSplitNeverHoldsMoreThanSize(t *testing.T) {
	bothWays(t, func(t *testing.T, transfers bool) {
		r := newRig(t, vringtest.Config{Size: 4, Start: 0xfffe}, transfers)
		d := r.split()
		for i := range uint16(4) {
			d.SetDesc(i, 0x1000, 1, 0, 0)
			d.SetAvail(i, i)
		}
		d.SetAvailIndex(1)
		var c vring.Chain
		for range 3 {
			r.next(t, &c)
		}
		r.q.Push(&c, 0) // not published: the driver cannot know
		d.SetAvailIndex(2)
		r.next(t, &c)
		d.SetAvailIndex(3)
		_, err := r.q.Next(&c)
		require.ErrorIs(t, err, vring.ErrAvailIndex)
		require.Equal(t, 3, r.q.InFlight())
	})
}
