package vring_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

const (
	avail = vringtest.FlagAvail
	used  = vringtest.FlagUsed
)

// Bytes written down by hand from the structures in the specification, in
// several places, as for split virtqueues. The chain starts at the last
// descriptor but one, in the lap in which the wrap counters are 0, and wraps.
func TestPackedLayout(t *testing.T) {
	for name, at := range map[string]struct{ desc, driver, device uint64 }{
		"aligned":           {0x1000, 0x1100, 0x1200},
		"weakly aligned":    {0x1010, 0x1104, 0x1204},
		"across the border": {0x1fd0, 0x2ffc, 0x3ffc},
	} {
		t.Run(name, func(t *testing.T) {
			mem := newMemory(t,
				vringtest.Range{Base: 0x1000, Size: 4096}, vringtest.Range{Base: 0x2000, Size: 4096},
				vringtest.Range{Base: 0x3000, Size: 4096}, vringtest.Range{Base: 0x4000, Size: 4096})
			put := func(addr uint64, b ...byte) { require.NoError(t, mem.WriteAt(b, addr)) }
			get := func(addr uint64, n int) []byte {
				b := make([]byte, n)
				require.NoError(t, mem.ReadAt(b, addr))
				return b
			}
			ring := make([]byte, 0, 5*16)
			ring = append(ring, 0xff, 0x6f, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0xfe, 0xca, 0x82, 0) // 0: writable, last, ID 0xcafe
			ring = append(ring, make([]byte, 2*16)...)
			ring = append(ring, 0x00, 0x50, 0, 0, 1, 0, 0, 0, 16, 0, 0, 0, 0xff, 0xff, 1, 0x80) // 3: readable
			ring = append(ring, 0x00, 0x60, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0xff, 0xff, 3, 0x80)  // 4: writable
			put(at.desc, ring...)
			put(at.driver, 3, 0, 2, 0) // for descriptor 3, wrap counter 0

			q, err := vring.NewPacked(mem, vring.Config{
				Size: 5, Desc: at.desc, Driver: at.driver, Device: at.device, EventIdx: true, Start: 0x8003,
			})
			require.NoError(t, err)
			var c vring.Chain
			ok, err := q.Next(&c)
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, uint16(0xcafe), c.Head)
			require.Equal(t, segs(seg(0x100005000, 16)), c.Readable)
			require.Equal(t, segs(seg(0x200006000, 512), seg(0x300006fff, 1)), c.Writable)
			require.Equal(t, uint64(16), c.ReadableLen)
			require.Equal(t, uint64(513), c.WritableLen)
			ok, err = q.Next(new(vring.Chain))
			require.NoError(t, err)
			require.False(t, ok)

			require.Equal(t, 1, q.InFlight())
			q.Push(&c, 0x201)
			require.Equal(t, 0, q.InFlight())
			require.Equal(t, ring, get(at.desc, len(ring)), "nothing is visible before it is published")
			interrupt, err := q.Publish()
			require.NoError(t, err)
			require.True(t, interrupt)
			copy(ring[3*16+8:], []byte{1, 2, 0, 0, 0xfe, 0xca, 2, 0}) // written, ID, WRITE and both wrap bits 0
			require.Equal(t, ring, get(at.desc, len(ring)), "one used descriptor, and nothing else")

			more, err := q.EnableNotifications()
			require.NoError(t, err)
			require.False(t, more)
			require.Equal(t, []byte{1, 0x80, 2, 0}, get(at.device, 4), "for descriptor 1, wrap counter 1")
		})
	}
}

// A used descriptor of a chain that nothing was written to has no WRITE flag.
func TestPackedUsedWithoutData(t *testing.T) {
	r := newRig(t, vringtest.Config{Packed: true, Size: 3}, false)
	var c vring.Chain
	r.add(t, segs(seg(0x1000, 1)), nil)
	r.drv.Kick()
	r.next(t, &c)
	r.q.Push(&c, 0)
	_, err := r.q.Publish()
	require.NoError(t, err)
	require.Equal(t, uint16(avail|used), r.packed().DescFlags(0))
	require.Equal(t, make([]byte, 4), r.mem.Bytes(r.drv.Queue().Desc+8, 4), "drivers read the length all the same")
}

func TestNewPackedRefuses(t *testing.T) {
	mem := newMemory(t, vringtest.Range{Base: 0x10000, Size: 0x90000},
		vringtest.Range{Base: 0x100000, Size: 0x10000, ReadOnly: true})
	good := vring.Config{Size: 10, Desc: 0x10000, Driver: 0x11000, Device: 0x12000}
	for _, size := range []int{1, 3, 10, 1000, 32767, 32768} {
		cfg := good
		cfg.Size, cfg.Desc = size, 0x20000
		_, err := vring.NewPacked(mem, cfg)
		require.NoError(t, err)
	}
	for _, c := range []struct {
		name   string
		change func(c *vring.Config)
		want   error
	}{
		{"size 0", func(c *vring.Config) { c.Size = 0 }, vring.ErrSize},
		{"negative size", func(c *vring.Config) { c.Size = -4 }, vring.ErrSize},
		{"size 32769", func(c *vring.Config) { c.Size = 32769 }, vring.ErrSize},
		{"start outside", func(c *vring.Config) { c.Start = 10 }, vring.ErrStart},
		{"start outside in the second lap", func(c *vring.Config) { c.Start = 0x8000 | 10 }, vring.ErrStart},
		{"descriptor ring at 8 modulo 16", func(c *vring.Config) { c.Desc += 8 }, vring.ErrRingAddress},
		{"driver area at 2 modulo 4", func(c *vring.Config) { c.Driver += 2 }, vring.ErrRingAddress},
		{"device area at 2 modulo 4", func(c *vring.Config) { c.Device += 2 }, vring.ErrRingAddress},
		{"descriptor ring wraps", func(c *vring.Config) { c.Desc = 1<<64 - 16 }, vring.ErrRingAddress},
		{"driver area wraps", func(c *vring.Config) { c.Driver = 1<<64 - 4 }, vring.ErrRingAddress},
		{"descriptor ring nowhere", func(c *vring.Config) { c.Desc = 0 }, vring.ErrUnmapped},
		{"driver area nowhere", func(c *vring.Config) { c.Driver = 0xa0000 }, vring.ErrUnmapped},
		{"device area nowhere", func(c *vring.Config) { c.Device = 1 << 63 }, vring.ErrUnmapped},
		{"descriptor ring in read-only memory", func(c *vring.Config) { c.Desc = 0x100000 }, vring.ErrUnmapped},
		{"device area in read-only memory", func(c *vring.Config) { c.Device = 0x100000 }, vring.ErrUnmapped},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := good
			c.change(&cfg)
			_, err := vring.NewPacked(mem, cfg)
			require.ErrorIs(t, err, c.want)
			require.Equal(t, c.want != vring.ErrUnmapped && c.want != vring.ErrStart, vring.IsMalformed(err))
		})
	}
	good.Driver = 0x100000
	_, err := vring.NewPacked(mem, good)
	require.NoError(t, err, "what the device only reads may lie in read-only memory")
}

// Of the flags in an indirect table WRITE alone is looked at, and buffer IDs are
// not (§2.8.7); nor is the WRITE flag of the descriptor that refers to the table.
func TestPackedTableFlagsAreIgnored(t *testing.T) {
	bothWays(t, func(t *testing.T, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: true, Size: 3, Indirect: 4, FirstID: 40000}, transfers)
		readable, writable := segs(seg(1, 1), seg(2, 2)), segs(seg(3, 3), seg(4, 4))
		id, err := r.drv.AddIndirect(readable, writable)
		require.NoError(t, err)
		d := r.packed()
		for i, s := range append(readable, writable...) {
			flags := uint16(0xffff &^ write)
			if i >= len(readable) {
				flags |= write
			}
			d.SetTableDesc(id, uint16(i), s.Addr, s.Len, 77, flags)
		}
		d.SetDesc(0, d.Table(id), 4*16, id, indirect|write|avail)
		r.drv.Kick()
		d.SetDescFlags(0, indirect|write|avail)
		var c vring.Chain
		r.next(t, &c)
		require.Equal(t, id, c.Head)
		require.Equal(t, readable, c.Readable)
		require.Equal(t, writable, c.Writable)
	})
}

// What the driver says about interrupts, as it might be meant and as it might not.
func TestPackedInterruptDecision(t *testing.T) {
	const desc = vringtest.EventDesc
	for _, c := range []struct {
		name         string
		event, flags uint16
		eventIdx     bool
		want         bool
	}{
		{"enabled", 0, vringtest.EventEnable, true, true},
		{"disabled", 0, vringtest.EventDisable, true, false},
		{"disabled, with reserved bits", 0, 0xfffc | vringtest.EventDisable, true, false},
		{"reserved value", 0, 3, true, true},
		{"descriptor before", 1 | 1<<15, desc, true, false},
		{"first descriptor", 2 | 1<<15, desc, true, true},
		{"skipped descriptor", 0, desc, true, true},
		{"last descriptor", 1, desc, true, true},
		{"next descriptor", 2, desc, true, false},
		{"last descriptor, a lap off", 1 | 1<<15, desc, true, false},
		{"no descriptor of the ring", 0x7fff, desc, true, false},
		{"no descriptor of the ring, other wrap counter", 0xffff, desc, true, false},
		{"feature not negotiated", 2, desc, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, transfers bool) {
				r := newRig(t, vringtest.Config{Packed: true, Size: 3, EventIdx: c.eventIdx, Start: 2}, transfers)
				r.add(t, segs(seg(0x1000, 1), seg(0x2000, 1)), nil) // descriptors 2 and 0
				r.add(t, segs(seg(0x1000, 1)), nil)                 // 1
				r.drv.Kick()
				var chains [2]vring.Chain
				for i := range chains {
					r.next(t, &chains[i])
				}
				for i := range chains {
					r.q.Push(&chains[i], 0)
				}
				r.packed().SetDriverEvent(c.event, c.flags)
				interrupt, err := r.q.Publish()
				require.NoError(t, err)
				require.Equal(t, c.want, interrupt)
			})
		})
	}
}

// What the device says about notifications, step by step.
func TestPackedNotificationSuppression(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		r := newRig(t, vringtest.Config{Packed: true, Size: 5, EventIdx: eventIdx, Start: 3}, false)
		said := func(event, flags uint16) {
			t.Helper()
			e, f := r.packed().DeviceEvent()
			require.Equal(t, []uint16{event, flags}, []uint16{e, f}, "EVENT_IDX %v", eventIdx)
		}
		said(0, vringtest.EventEnable)
		require.NoError(t, r.q.DisableNotifications())
		said(0, vringtest.EventDisable)
		_, err := r.q.EnableNotifications()
		require.NoError(t, err)
		if !eventIdx {
			said(0, vringtest.EventEnable)
			continue
		}
		said(3|1<<15, vringtest.EventDesc)
		var c vring.Chain
		r.add(t, segs(seg(0x1000, 1), seg(0x2000, 1), seg(0x3000, 1)), nil)
		require.True(t, r.drv.Kick())
		require.NoError(t, r.q.DisableNotifications())
		r.next(t, &c)
		r.add(t, segs(seg(0x1000, 1)), nil)
		require.False(t, r.drv.Kick(), "the descriptor stays behind")
		said(3|1<<15, vringtest.EventDesc)
		r.next(t, &c)
		_, err = r.q.EnableNotifications()
		require.NoError(t, err)
		said(2, vringtest.EventDesc)
	}
}

// A notification that is asked for while a chain is there may never come.
func TestPackedEnableNotificationsLooksAgain(t *testing.T) {
	bothWays(t, func(t *testing.T, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: true, Size: 4}, transfers)
		r.add(t, segs(seg(0x1000, 1)), nil)
		r.drv.Kick()
		var c vring.Chain
		for range 2 {
			more, err := r.q.EnableNotifications()
			require.NoError(t, err)
			require.True(t, more)
		}
		r.next(t, &c)
		more, err := r.q.EnableNotifications()
		require.NoError(t, err)
		require.False(t, more)
	})
}

// A chain that is pushed is no longer the caller's to push, though others are in
// flight: the ring would be out of step.
func TestPackedPushTwicePanics(t *testing.T) {
	r := newRig(t, vringtest.Config{Packed: true, Size: 4}, false)
	var chains [2]vring.Chain
	for range chains {
		r.add(t, segs(seg(0x1000, 1)), nil)
	}
	r.drv.Kick()
	r.nextAll(t, chains[:])
	r.q.Push(&chains[1], 0)
	require.Panics(t, func() { r.q.Push(&chains[1], 0) })
	r.q.Push(&chains[0], 0)
}
