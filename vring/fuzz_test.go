package vring_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// FuzzSplit lets arbitrary bytes be a ring: its place, its size, what lies in it.
// Whatever they say, the device must stay within its bounds, and must understand
// the same whether memory is lent or transferred.
//
// The first five bytes choose features, size, start and the places of the areas
// in 4 KiB of memory; the rest is that memory.
func FuzzSplit(f *testing.F) {
	for _, seed := range fuzzSeeds(f) {
		f.Add(seed)
	}
	mem := newMemory(f, vringtest.Range{Base: fuzzBase, Size: fuzzSize},
		vringtest.Range{Base: fuzzUsed, Size: fuzzSize})
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, content, ok := fuzzConfig(data)
		if !ok {
			return
		}
		ram := mem.Bytes(fuzzBase, fuzzSize)
		clear(ram)
		copy(ram, content)
		mem.TransfersOnly(false)
		lent, err := vring.NewSplit(mem, cfg)
		if err != nil {
			return
		}
		mem.TransfersOnly(true)
		moved, err := vring.NewSplit(mem, cfg)
		require.NoError(t, err)
		fuzzBoth(t, mem, cfg, lent, moved)
	})
}

const (
	fuzzBase = 0x1000
	fuzzSize = 0x1000
	fuzzUsed = 0x10000 // out of the way, so that what one queue writes is not what the other reads
)

func fuzzConfig(data []byte) (cfg vring.Config, content []byte, ok bool) {
	if len(data) < 5 {
		return cfg, nil, false
	}
	return vring.Config{
		Size:     1 << (data[0] >> 2 & 7),
		EventIdx: data[0]&1 != 0,
		Indirect: data[0]&2 != 0,
		MaxChain: int(data[1]),
		Desc:     fuzzBase + uint64(data[2])<<4,
		Driver:   fuzzBase + uint64(data[3])<<1,
		Device:   fuzzUsed,
		Start:    uint16(int8(data[4])),
	}, data[5:], true
}

func fuzzBoth(t *testing.T, mem *vringtest.Memory, cfg vring.Config, lent, moved *vring.Split) {
	var a, b vring.Chain
	for range 2 * cfg.Size {
		mem.TransfersOnly(false)
		okA, errA := lent.Next(&a)
		mem.TransfersOnly(true)
		okB, errB := moved.Next(&b)
		require.Equal(t, okA, okB)
		require.Equal(t, cause(errA), cause(errB))
		if !okA {
			break
		}
		require.Equal(t, a.Head, b.Head)
		require.Equal(t, a.Readable, b.Readable)
		require.Equal(t, a.Writable, b.Writable)
		fuzzChain(t, cfg, &a)
		require.LessOrEqual(t, lent.InFlight(), cfg.Size)
	}
	for _, q := range []*vring.Split{lent, moved} {
		mem.TransfersOnly(q == moved)
		n := q.InFlight()
		for range n {
			q.Push(&a, 1)
		}
		if _, err := q.Publish(); err == nil && n > 0 {
			require.Equal(t, cfg.Start+uint16(n), mem.Window(fuzzUsed, 4).Load16(2))
		}
		_, _ = q.EnableNotifications()
		_ = q.DisableNotifications()
		require.Zero(t, q.InFlight())
	}
}

func fuzzChain(t *testing.T, cfg vring.Config, c *vring.Chain) {
	limit := cfg.MaxChain
	if limit == 0 {
		limit = cfg.Size
	}
	require.Less(t, int(c.Head), cfg.Size)
	require.LessOrEqual(t, len(c.Readable)+len(c.Writable), limit)
	for _, list := range [][]vring.Segment{c.Readable, c.Writable} {
		for _, s := range list {
			require.NotZero(t, s.Len)
			require.Greater(t, s.Addr+uint64(s.Len), s.Addr)
		}
	}
}

// cause returns the sentinel in err.
func cause(err error) error {
	var m vring.Malformed
	switch {
	case errors.As(err, &m):
		return m
	case errors.Is(err, vring.ErrUnmapped):
		return vring.ErrUnmapped
	}
	return err
}

// fuzzSeeds returns good rings and one for each malformed thing.
func fuzzSeeds(f *testing.F) (seeds [][]byte) {
	for bits := range byte(4) {
		for _, c := range malformed {
			mem := newMemory(f, vringtest.Range{Base: fuzzBase, Size: fuzzSize})
			drv, err := vringtest.NewDriver(mem, vringtest.Config{Size: 8, Indirect: 8})
			require.NoError(f, err)
			_, err = drv.Add(segs(seg(0x1000, 16)), segs(seg(0x2000, 1)))
			require.NoError(f, err)
			_, err = drv.AddIndirect(segs(seg(0x1000, 16)), segs(seg(0x2000, 1)))
			require.NoError(f, err)
			drv.Kick()
			if bits&2 == 0 {
				c.do(drv)
			}
			cfg := drv.Queue()
			head := []byte{bits | 3<<2, 8, byte((cfg.Desc - fuzzBase) >> 4), byte((cfg.Driver - fuzzBase) >> 1), 0}
			seeds = append(seeds, append(head, mem.Bytes(fuzzBase, 2048)...))
		}
	}
	return seeds
}
