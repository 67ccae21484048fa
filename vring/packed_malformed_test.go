package vring_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// Each case is a packed ring of 8 descriptors, chain 0 good and in flight at
// descriptor 0, whose driver then does something wrong with chain 1 at
// descriptor 1. Tables hold 8 descriptors.
var malformedPacked = []struct {
	name  string
	do    func(d *vringtest.PackedDriver)
	want  error
	going bool // the queue goes on
}{
	{"rest of a chain was never there", func(d *vringtest.PackedDriver) {
		d.SetDesc(1, 0x1000, 1, 1, next|avail)
	}, vring.ErrUnavailable, false},
	{"rest of a chain is used", func(d *vringtest.PackedDriver) {
		d.SetDesc(2, 0x1000, 1, 1, avail|used)
		d.SetDesc(1, 0x1000, 1, 1, next|avail)
	}, vring.ErrUnavailable, false},
	{"rest of a chain has the next wrap counter", func(d *vringtest.PackedDriver) {
		d.SetDesc(2, 0x1000, 1, 1, used)
		d.SetDesc(1, 0x1000, 1, 1, next|avail)
	}, vring.ErrUnavailable, false},
	{"chain runs into what is in flight", func(d *vringtest.PackedDriver) {
		d.SetDesc(0, 0x1000, 1, 1, used)
		for i := range uint16(7) {
			d.SetDesc(7-i, 0x1000, 1, 1, next|avail)
		}
	}, vring.ErrOverrun, false},
	{"chain of nothing runs into what is in flight", func(d *vringtest.PackedDriver) {
		for i := range uint16(7) {
			d.SetDesc(7-i, 0x1000, 0, 1, next|avail)
		}
	}, vring.ErrOverrun, false},
	{"readable after writable", func(d *vringtest.PackedDriver) {
		d.SetDesc(2, 0x2000, 1, 1, avail)
		d.SetDesc(1, 0x1000, 1, 1, write|next|avail)
	}, vring.ErrOrder, false},
	{"readable after writable, in a table", func(d *vringtest.PackedDriver) {
		d.SetTableDesc(1, 0, 0x1000, 1, 0, write)
		d.SetTableDesc(1, 1, 0x1000, 1, 0, 0)
		d.SetDesc(1, d.Table(1), 32, 1, indirect|avail)
	}, vring.ErrOrder, false},
	{"buffer wraps around", func(d *vringtest.PackedDriver) {
		d.SetDesc(1, 1<<64-16, 17, 1, avail)
	}, vring.ErrAddress, false},
	{"buffer ends at 2^64", func(d *vringtest.PackedDriver) {
		d.SetDesc(1, 1<<64-16, 16, 1, avail)
	}, vring.ErrAddress, false},
	{"table wraps around", func(d *vringtest.PackedDriver) {
		d.SetDesc(1, 1<<64-16, 32, 1, indirect|avail)
	}, vring.ErrAddress, false},
	{"table of no length", func(d *vringtest.PackedDriver) {
		d.SetDesc(1, d.Table(1), 0, 1, indirect|avail)
	}, vring.ErrIndirectLength, false},
	{"table of odd length", func(d *vringtest.PackedDriver) {
		d.SetDesc(1, d.Table(1), 24, 1, indirect|avail)
	}, vring.ErrIndirectLength, false},
	{"table too long", func(d *vringtest.PackedDriver) {
		d.SetDesc(1, d.Table(1), 9*16, 1, indirect|avail)
	}, vring.ErrIndirectTooLong, false},
	{"table of 4 GiB", func(d *vringtest.PackedDriver) {
		d.SetDesc(1, d.Table(1), 0xfffffff0, 1, indirect|avail)
	}, vring.ErrIndirectTooLong, false},
	{"table with a next descriptor", func(d *vringtest.PackedDriver) {
		d.SetDesc(2, 0x2000, 1, 1, avail)
		d.SetDesc(1, d.Table(1), 16, 1, indirect|next|avail)
	}, vring.ErrIndirectNext, false},
	{"table after a direct descriptor", func(d *vringtest.PackedDriver) {
		d.SetDesc(2, d.Table(1), 16, 1, indirect|avail)
		d.SetDesc(1, 0x1000, 1, 1, next|avail)
	}, vring.ErrIndirectNext, false},
	{"empty chain", func(d *vringtest.PackedDriver) {
		d.SetDesc(1, 0x1000, 0, 1, avail)
	}, vring.ErrEmpty, true},
	{"empty table entries", func(d *vringtest.PackedDriver) {
		for i := range uint16(8) {
			d.SetTableDesc(1, i, 0x1000, 0, 0, 0)
		}
		d.SetDesc(1, d.Table(1), 8*16, 1, indirect|avail)
	}, vring.ErrEmpty, true},
	{"total length", func(d *vringtest.PackedDriver) {
		d.SetTableDesc(1, 0, 0x1000, 0xffffffff, 0, 0)
		d.SetTableDesc(1, 1, 0x1000, 1, 0, write)
		d.SetDesc(1, d.Table(1), 32, 1, indirect|avail)
	}, vring.ErrLength, true},
}

func TestMalformedPacked(t *testing.T) {
	for _, c := range malformedPacked {
		t.Run(c.name, func(t *testing.T) {
			testMalformed(t, true, func(r *rig) { c.do(r.packed()) }, c.want, c.going)
		})
	}
}

// With nothing in flight a chain can go once round the ring and no further.
func TestPackedChainLongerThanTheRing(t *testing.T) {
	bothWays(t, func(t *testing.T, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: true, Size: 5}, transfers)
		for i := range uint16(5) {
			r.packed().SetDesc(4-i, 0x1000, 1, 1, next|avail)
		}
		ok, err := r.q.Next(new(vring.Chain))
		require.False(t, ok)
		require.ErrorIs(t, err, vring.ErrTooLong)
	})
}

func TestPackedChainLongerThanAllowed(t *testing.T) {
	bothWays(t, func(t *testing.T, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: true, Size: 5}, transfers)
		cfg := r.drv.Queue()
		cfg.MaxChain = 2
		var err error
		r.q, err = vring.NewPacked(r.mem, cfg)
		require.NoError(t, err)
		r.add(t, segs(seg(1, 1), seg(2, 2)), nil)
		r.add(t, segs(seg(1, 1), seg(2, 2), seg(3, 3)), nil)
		r.drv.Kick()
		r.next(t, new(vring.Chain))
		ok, err := r.q.Next(new(vring.Chain))
		require.False(t, ok)
		require.ErrorIs(t, err, vring.ErrTooLong)
	})
}

// A driver that makes descriptors available again which are still in flight
// would have the device hold more than the ring has, and overwrite with used
// descriptors what it did not fetch.
func TestPackedNeverHoldsMoreThanSize(t *testing.T) {
	bothWays(t, func(t *testing.T, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: true, Size: 3, Start: 2}, transfers)
		d := r.packed()
		d.SetDesc(2, 0x1000, 1, 7, avail)
		d.SetDesc(0, 0x1000, 1, 7, used)
		d.SetDesc(1, 0x1000, 1, 9, used)
		var c, last vring.Chain
		r.next(t, &c)
		r.next(t, &last)
		r.q.Push(&c, 0) // not published: the driver cannot know
		r.next(t, &last)
		require.Equal(t, uint16(9), last.Head)
		ok, err := r.q.Next(&c)
		require.NoError(t, err)
		require.False(t, ok)
		d.SetDesc(2, 0x1000, 1, 7, used)
		_, err = r.q.EnableNotifications()
		require.ErrorIs(t, err, vring.ErrOverrun)
		_, err = r.q.Next(&c)
		require.ErrorIs(t, err, vring.ErrOverrun)
		require.Equal(t, 2, r.q.InFlight())
	})
}

// The device only echoes buffer IDs: they are any numbers, and even the same.
func TestPackedBufferIDsAreAnything(t *testing.T) {
	bothWays(t, func(t *testing.T, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: true, Size: 4}, transfers)
		ids := []uint16{0xffff, 0, 0xffff, 0x8000}
		for i, id := range ids {
			r.packed().SetDesc(uint16(i), 0x1000, 1, id, avail)
		}
		var chains [4]vring.Chain
		r.nextAll(t, chains[:])
		for i := range chains {
			require.Equal(t, ids[i], chains[i].Head)
			r.q.Push(&chains[i], 1)
		}
		_, err := r.q.Publish()
		require.NoError(t, err)
		for i, id := range ids {
			off := r.drv.Queue().Desc + uint64(i*16)
			require.Equal(t, []byte{1, 0, 0, 0, byte(id), byte(id >> 8), 0x82, 0x80}, r.mem.Bytes(off+8, 8))
		}
	})
}
