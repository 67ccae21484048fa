package vring_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// Bytes written down by hand from the structures in the specification, in
// several places: the second has the weakest alignment, in the third each area
// crosses from one region into the next and so cannot be lent whole.
func TestSplitLayout(t *testing.T) {
	for name, at := range map[string]struct{ desc, avail, used uint64 }{
		"aligned":           {0x1000, 0x1100, 0x1200},
		"weakly aligned":    {0x1010, 0x1102, 0x1204},
		"across the border": {0x1fe0, 0x2ffa, 0x3ffc},
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
			put(at.desc+3*16, 0x00, 0x50, 0, 0, 1, 0, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0)    // 3: readable, next 1
			put(at.desc+1*16, 0x00, 0x60, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 3, 0, 2, 0)     // 1: writable, next 2
			put(at.desc+2*16, 0xff, 0x6f, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0xff, 99) // 2: writable, last
			put(at.avail, 0, 0, 1, 0, 3, 0)                                             // no flags, index 1, head 3
			put(at.avail+4+2*4, 0, 0)                                                   // used_event 0

			q, err := vring.NewSplit(mem, vring.Config{
				Size: 4, Desc: at.desc, Driver: at.avail, Device: at.used, EventIdx: true,
			})
			require.NoError(t, err)
			var c vring.Chain
			ok, err := q.Next(&c)
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, uint16(3), c.Head)
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
			require.Equal(t, make([]byte, 12), get(at.used, 12), "nothing is visible before it is published")
			interrupt, err := q.Publish()
			require.NoError(t, err)
			require.True(t, interrupt)
			require.Equal(t, []byte{0, 0, 1, 0, 3, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0}, get(at.used, 16))

			more, err := q.EnableNotifications()
			require.NoError(t, err)
			require.False(t, more)
			require.Equal(t, []byte{1, 0}, get(at.used+4+8*4, 2), "avail_event")
		})
	}
}

func TestNewSplitRefuses(t *testing.T) {
	mem := newMemory(t, vringtest.Range{Base: 0x10000, Size: 0x10000},
		vringtest.Range{Base: 0x40000, Size: 0x10000, ReadOnly: true})
	good := vring.Config{Size: 16, Desc: 0x10000, Driver: 0x11000, Device: 0x12000}
	_, err := vring.NewSplit(mem, good)
	require.NoError(t, err)
	for _, c := range []struct {
		name   string
		change func(c *vring.Config)
		want   error
	}{
		{"size 0", func(c *vring.Config) { c.Size = 0 }, vring.ErrSize},
		{"negative size", func(c *vring.Config) { c.Size = -4 }, vring.ErrSize},
		{"size 3", func(c *vring.Config) { c.Size = 3 }, vring.ErrSize},
		{"size 65536", func(c *vring.Config) { c.Size = 65536 }, vring.ErrSize},
		{"descriptor table at 8 modulo 16", func(c *vring.Config) { c.Desc += 8 }, vring.ErrRingAddress},
		{"available ring at an odd address", func(c *vring.Config) { c.Driver++ }, vring.ErrRingAddress},
		{"used ring at 2 modulo 4", func(c *vring.Config) { c.Device += 2 }, vring.ErrRingAddress},
		{"descriptor table wraps", func(c *vring.Config) { c.Desc = 1<<64 - 16 }, vring.ErrRingAddress},
		{"available ring wraps", func(c *vring.Config) { c.Driver = 1<<64 - 2 }, vring.ErrRingAddress},
		{"used ring wraps", func(c *vring.Config) { c.Device = 1<<64 - 4 }, vring.ErrRingAddress},
		{"descriptor table nowhere", func(c *vring.Config) { c.Desc = 0 }, vring.ErrUnmapped},
		{"available ring nowhere", func(c *vring.Config) { c.Driver = 0x30000 }, vring.ErrUnmapped},
		{"used ring nowhere", func(c *vring.Config) { c.Device = 1 << 63 }, vring.ErrUnmapped},
		{"used ring in read-only memory", func(c *vring.Config) { c.Device = 0x40000 }, vring.ErrUnmapped},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := good
			c.change(&cfg)
			_, err := vring.NewSplit(mem, cfg)
			require.ErrorIs(t, err, c.want)
			require.Equal(t, c.want != vring.ErrUnmapped, vring.IsMalformed(err))
		})
	}
	good.Desc, good.Driver = 0x40000, 0x41000
	_, err = vring.NewSplit(mem, good)
	require.NoError(t, err, "what the device only reads may lie in read-only memory")
}

// Direct descriptors may come before the one that refers to a table, whose write
// flag means nothing (§2.7.5.3.2).
func TestSplitIndirectAfterDirect(t *testing.T) {
	bothWays(t, func(t *testing.T, transfers bool) {
		r := newRig(t, vringtest.Config{Size: 8, Indirect: 8}, transfers)
		readable, writable := segs(seg(1, 1), seg(2, 2)), segs(seg(3, 3), seg(4, 4), seg(5, 5))
		for direct := range 6 {
			_, err := r.drv.AddMixed(readable, writable, direct)
			require.NoError(t, err)
			if direct == 1 {
				r.split().SetDesc(2, r.split().Table(2), 4*16, vringtest.FlagIndirect|vringtest.FlagWrite, 77)
			}
			r.drv.Kick()
			var c vring.Chain
			r.next(t, &c)
			require.Equal(t, readable, c.Readable, "%d direct", direct)
			require.Equal(t, writable, c.Writable, "%d direct", direct)
			r.q.Push(&c, 0)
			_, err = r.q.Publish()
			require.NoError(t, err)
			r.collect(t)
			require.Equal(t, 8, r.drv.Free())
		}
	})
}

// What a queue transfers where nothing can be lent, and in which order: the
// index before the entries before the descriptors; used entries before the index
// before the look at what the driver wants.
func TestSplitTransfersAreFewAndOrdered(t *testing.T) {
	r := newRig(t, vringtest.Config{Size: 64, EventIdx: true, Indirect: 4, Start: 62}, true)
	cfg := r.drv.Queue()
	rec := &recorder{Memory: r.mem, names: map[uint64]string{
		cfg.Desc: "desc", cfg.Driver: "avail", cfg.Device: "used", r.split().Table(0): "table",
	}}
	q, err := vring.NewSplit(rec, cfg)
	require.NoError(t, err)
	for range 5 {
		r.add(t, segs(seg(1, 1)), segs(seg(2, 2)))
	}
	_, err = r.drv.AddIndirect(segs(seg(1, 1)), segs(seg(2, 2)))
	require.NoError(t, err)
	r.drv.Kick()
	var chains [6]vring.Chain
	for i := range chains {
		ok, err := q.Next(&chains[i])
		require.NoError(t, err)
		require.True(t, ok)
	}
	require.Equal(t, []string{
		"read avail+2:2", "read avail+128:4", "read avail+4:8", // index; entries 62, 63; 0 to 3
		"read desc+0:512",   // 32 descriptors at a time
		"read table+640:32", // of descriptor 10
	}, rec.take())
	for i := range chains {
		q.Push(&chains[i], 2)
	}
	require.Empty(t, rec.take())
	_, err = q.Publish()
	require.NoError(t, err)
	require.Equal(t, []string{
		"write used+500:16", "write used+4:32", "write used+0:4", "read avail+132:2",
	}, rec.take())
	_, err = q.EnableNotifications()
	require.NoError(t, err)
	require.Equal(t, []string{"write used+516:2", "read avail+2:2"}, rec.take())
	_, err = q.Publish()
	require.NoError(t, err)
	require.NoError(t, q.DisableNotifications())
	require.Empty(t, rec.take(), "nothing to say")
}
