package vring_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// Both drivers, with rings of all sizes and kinds of first chains, are told
// apart as soon as they made something available, and not before.
func TestFormatEvidence(t *testing.T) {
	first, second := segs(seg(0x1000, 16)), segs(seg(0x2000, 1))
	two := segs(seg(0x1000, 16), seg(0x2000, 1))
	eachWay(t, func(t *testing.T, packed, transfers bool) {
		want := vring.SplitFormat
		if packed {
			want = vring.PackedFormat
		}
		for _, size := range []int{2, 64, 256, 1024} {
			for name, add := range map[string]func(d vringtest.Virtqueue) (uint16, error){
				"readable": func(d vringtest.Virtqueue) (uint16, error) { return d.Add(two, nil) },
				"chain":    func(d vringtest.Virtqueue) (uint16, error) { return d.Add(first, second) },
				"indirect": func(d vringtest.Virtqueue) (uint16, error) { return d.AddIndirect(first, second) },
			} {
				t.Run(fmt.Sprintf("size %d/%s", size, name), func(t *testing.T) {
					r := newRig(t, vringtest.Config{Packed: packed, Size: size, Indirect: 2}, transfers)
					cfg := r.drv.Queue()
					evidence := func() vring.Format {
						f, err := vring.FormatEvidence(r.mem, cfg.Desc, cfg.Driver)
						require.NoError(t, err)
						return f
					}
					require.Equal(t, vring.Undecided, evidence())
					if packed { // as Linux does for a queue that it polls
						r.packed().SetDriverEvent(0, vringtest.EventDisable)
						require.Equal(t, vring.Undecided, evidence(), "it looks like an index")
					}
					_, err := add(r.drv)
					require.NoError(t, err)
					require.Equal(t, vring.Undecided, evidence(), "the device must not know yet")
					r.drv.Kick()
					require.Equal(t, want, evidence())
					if packed {
						for _, flags := range []uint16{vringtest.EventDisable, vringtest.EventDesc} {
							r.packed().SetDriverEvent(1, flags)
							require.Equal(t, want, evidence(), "it looks like an index")
						}
					}
					for n := 1; r.drv.Free() > 1; n++ {
						r.add(t, first, second)
						r.drv.Kick()
						require.Equal(t, want, evidence(), "%d more chains", n)
					}
				})
			}
		}
	})
}

// Two reads decide, and the descriptor's is one of its own: it may change between
// two looks.
func TestFormatEvidenceReadsOnce(t *testing.T) {
	mem := newMemory(t, vringtest.Range{Base: 0x1000, Size: 0x1000})
	rec := &recorder{Memory: mem, names: map[uint64]string{0x1000: "desc", 0x1800: "driver"}}
	for range 2 {
		f, err := vring.FormatEvidence(rec, 0x1000, 0x1800)
		require.NoError(t, err)
		require.NotEqual(t, vring.SplitFormat, f)
		require.Equal(t, []string{"read driver+2:2", "read desc+14:2"}, rec.take())
		mem.Bytes(0x1000, 16)[14] = avail
	}
}

func TestFormatEvidenceOfBytes(t *testing.T) {
	mem := newMemory(t, vringtest.Range{Base: 0x1000, Size: 0x1000})
	mem.Window(0x1000, 0x1000).Store16(12, next) // the first descriptor's flags, if the ring is split
	for _, c := range []struct {
		flags, index uint16
		want         vring.Format
	}{
		{0, 0, vring.Undecided},
		{0, 1, vring.SplitFormat},
		{1, 1, vring.SplitFormat},
		{127, 0xffff, vring.SplitFormat},
		{avail, 0, vring.PackedFormat},
		{avail | next, 0, vring.PackedFormat},
		{avail | write | indirect, 2, vring.PackedFormat},
		{avail | used, 0, vring.Undecided},
		{avail | used, 1, vring.SplitFormat},
		{avail | 8, 0, vring.Undecided},
		{avail | 1<<14, 1, vring.SplitFormat},
	} {
		w := mem.Window(0x1000, 0x1000)
		w.Store16(14, c.flags)
		w.Store16(0x802, c.index)
		f, err := vring.FormatEvidence(mem, 0x1000, 0x1800)
		require.NoError(t, err)
		require.Equal(t, c.want, f, "flags %#x, index %d", c.flags, c.index)
	}
}

func TestFormatEvidenceErrors(t *testing.T) {
	mem := newMemory(t, vringtest.Range{Base: 0x1000, Size: 0x1000})
	for _, c := range []struct {
		desc, driver uint64
		want         error
	}{
		{0x1008, 0x1800, vring.ErrRingAddress},
		{0x1000, 0x1801, vring.ErrRingAddress},
		{0, 0x1800, vring.ErrUnmapped},
		{0x1000, 0x2000, vring.ErrUnmapped},
		{1<<64 - 16, 0x1800, vring.ErrRingAddress},
	} {
		f, err := vring.FormatEvidence(mem, c.desc, c.driver)
		require.ErrorIs(t, err, c.want)
		require.Equal(t, vring.Undecided, f)
	}
	require.Equal(t, []string{"undecided", "split", "packed", "format 9"}, []string{
		vring.Undecided.String(), vring.SplitFormat.String(), vring.PackedFormat.String(), vring.Format(9).String(),
	})
}
