package epc

import (
	"errors"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
)

// far is host memory that is reached by transfers: one byte of it is its address.
type far struct {
	fail    error
	written map[uint64]byte
}

func (f *far) ReadHost(p []byte, addr uint64) error {
	for i := range p {
		p[i] = byte(addr + uint64(i))
	}
	return f.fail
}

func (f *far) WriteHost(p []byte, addr uint64) error {
	for i, v := range p {
		f.written[addr+uint64(i)] = v
	}
	return f.fail
}

func region(addr, size uint64) Region {
	return Region{Addr: addr, Size: size, Mem: make([]byte, size), Readable: true, Writable: true}
}

func TestRegionsMayNotOverlap(t *testing.T) {
	m := NewMemory(nil)
	require.NoError(t, m.Add(region(0x1000, 0x1000)))
	require.NoError(t, m.Add(region(0x3000, 0x1000)))
	require.NoError(t, m.Add(region(0x2000, 0x1000)), "a gap that fits")
	top := Region{Addr: math.MaxUint64 - 0xfff, Size: 0x1000}
	require.NoError(t, m.Add(top), "the last page of the address space")
	for _, r := range []Region{
		region(0x1000, 1), region(0x1fff, 2), region(0xfff, 2), region(0, 0x5000), region(0x3fff, 1),
		{Addr: 0x9000},
		{Addr: math.MaxUint64 - 0xfff, Size: 0x2000},
		{Addr: math.MaxUint64, Size: 1},
		{Addr: 0x8000, Size: 8, Mem: make([]byte, 7)},
	} {
		require.ErrorIs(t, m.Add(r), ErrOverlap, "%#x +%#x", r.Addr, r.Size)
	}
	require.Len(t, m.Regions(), 4)
}

func TestRemoveTakesWholeRegions(t *testing.T) {
	m := NewMemory(nil)
	for _, addr := range []uint64{0x1000, 0x2000, 0x3000} {
		require.NoError(t, m.Add(region(addr, 0x1000)))
	}
	require.Empty(t, m.Remove(0x1800, 0x1000), "nothing lies inside")
	removed := m.Remove(0x1800, 0x1800)
	require.Len(t, removed, 1)
	require.EqualValues(t, 0x2000, removed[0].Addr)
	require.Len(t, m.Remove(0, 0), 2, "everything")
	require.Empty(t, m.Regions())
}

func TestLendIsTheLongestPrefix(t *testing.T) {
	m := NewMemory(&far{})
	low, high := region(0x1000, 0x1000), region(0x2000, 0x1000)
	rom := region(0x3000, 0x1000)
	rom.Writable = false
	for _, r := range []Region{low, high, rom, {Addr: 0x5000, Size: 0x1000, Readable: true, Writable: true}} {
		require.NoError(t, m.Add(r))
	}
	v := m.View()
	b, err := v.Lend(0x1ff0, 0x20, vring.Write)
	require.NoError(t, err)
	require.Len(t, b, 0x10, "up to the end of the mapping, though the next follows")
	b[0] = 7
	require.EqualValues(t, 7, low.Mem[0xff0])

	_, err = v.Lend(0x3000, 1, vring.Write)
	require.ErrorIs(t, err, vring.ErrUnmapped, "read-only")
	_, err = v.Lend(0x3000, 1, vring.Read|vring.Write)
	require.ErrorIs(t, err, vring.ErrUnmapped)
	b, err = v.Lend(0x3000, 1, vring.Read)
	require.NoError(t, err)
	require.Len(t, b, 1)
	_, err = v.Lend(0x4000, 1, vring.Read)
	require.ErrorIs(t, err, vring.ErrUnmapped)
	b, err = v.Lend(0x5000, 1, vring.Read)
	require.NoError(t, err)
	require.Empty(t, b, "there, but not mapped")

	m.Remove(0x1000, 0x1000)
	_, err = v.Lend(0x1ff0, 1, vring.Read)
	require.ErrorIs(t, err, vring.ErrUnmapped, "a view sees changes at once")
}

func TestCopiesGoAcrossRegions(t *testing.T) {
	f := &far{written: map[uint64]byte{}}
	m := NewMemory(f)
	near := region(0x1000, 0x100)
	require.NoError(t, m.Add(near))
	require.NoError(t, m.Add(Region{Addr: 0x1100, Size: 0x100, Readable: true, Writable: true}))
	near.Mem[0xff] = 0x55
	v := m.View()

	p := make([]byte, 3)
	require.NoError(t, v.ReadAt(p, 0x10ff))
	require.Equal(t, []byte{0x55, 0x00, 0x01}, p)
	require.NoError(t, v.WriteAt([]byte{1, 2, 3}, 0x10fe))
	require.Equal(t, []byte{1, 2}, near.Mem[0xfe:])
	require.Equal(t, map[uint64]byte{0x1100: 3}, f.written)

	require.ErrorIs(t, v.ReadAt(p, 0x11ff), vring.ErrUnmapped, "the second byte")
	require.ErrorIs(t, v.WriteAt(p, math.MaxUint64), vring.ErrUnmapped)
	f.fail = errors.New("link down")
	require.ErrorIs(t, v.ReadAt(p, 0x1100), f.fail)
}

func TestLookUpsDoNotAllocate(t *testing.T) {
	m := NewMemory(nil)
	for addr := uint64(0); addr < 64; addr++ {
		require.NoError(t, m.Add(region(addr*0x2000, 0x1000)))
	}
	v, p, addr := m.View(), make([]byte, 4), uint64(0)
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		addr = (addr + 0x2000) % (64 * 0x2000)
		if _, err := v.Lend(addr, 64, vring.Read); err != nil {
			panic(err)
		}
		if err := v.ReadAt(p, addr); err != nil {
			panic(err)
		}
	}))
}

func BenchmarkLend(b *testing.B) {
	m := NewMemory(nil)
	for addr := uint64(0); addr < 8; addr++ {
		if err := m.Add(region(addr*0x2000, 0x1000)); err != nil {
			b.Fatal(err)
		}
	}
	v := m.View()
	for b.Loop() {
		if _, err := v.Lend(0x4010, 64, vring.Read); err != nil {
			b.Fatal(err)
		}
	}
}
