package vringtest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/vring"
)

func newDriver(t *testing.T, cfg Config) (*Memory, *Driver) {
	mem, err := NewMemory(Range{Base: 0x1000, Size: 0x1000}, Range{Base: 0x2000, Size: 0x1000},
		Range{Base: 0x8000, Size: 0x1000, ReadOnly: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mem.Close()) })
	d, err := NewDriver(mem, cfg)
	require.NoError(t, err)
	return mem, d
}

func TestMemory(t *testing.T) {
	mem, _ := newDriver(t, Config{Size: 1})
	copy(mem.Bytes(0x1ffe, 2), "ab")
	copy(mem.Bytes(0x2000, 2), "cd")
	require.Len(t, mem.Bytes(0x1ffe, 4), 2, "regions are not contiguous in our address space")
	require.Empty(t, mem.Bytes(0x3000, 1))

	b, err := mem.Lend(0x1ffe, 4, vring.Read|vring.Write)
	require.NoError(t, err)
	require.Equal(t, "ab", string(b))
	p := make([]byte, 4)
	require.NoError(t, mem.ReadAt(p, 0x1ffe))
	require.Equal(t, "abcd", string(p))
	require.NoError(t, mem.WriteAt([]byte("wxyz"), 0x1ffe))
	require.Equal(t, "yz", string(mem.Bytes(0x2000, 2)))
	reads, writes := mem.Transfers()
	require.Equal(t, []int64{1, 1}, []int64{reads, writes})

	mem.TransfersOnly(true)
	b, err = mem.Lend(0x1ffe, 4, vring.Read)
	require.NoError(t, err)
	require.Empty(t, b)

	for _, addr := range []uint64{0, 0xfff, 0x3000, 0x7fff, 1<<64 - 1} {
		_, err = mem.Lend(addr, 1, vring.Read)
		require.ErrorIs(t, err, vring.ErrUnmapped)
		require.ErrorIs(t, mem.ReadAt(p, addr), vring.ErrUnmapped)
	}
	require.ErrorIs(t, mem.ReadAt(p, 0x2ffe), vring.ErrUnmapped, "the second half is not there")
	require.NoError(t, mem.ReadAt(p, 0x8000))
	require.ErrorIs(t, mem.WriteAt(p, 0x8000), vring.ErrUnmapped)

	m, err := shm.Map(mem.Regions()[1].FD(), 0, 0x1000, false)
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, "yz", string(m.Bytes()[:2]), "a peer can map the same memory")
}

func TestAllocStaysInsideRegions(t *testing.T) {
	mem, err := NewMemory(Range{Base: 0x1000, Size: 0x1000}, Range{Base: 0x5000, Size: 0x1000})
	require.NoError(t, err)
	defer mem.Close()
	for _, want := range []uint64{0x1000, 0x5000, 0x1900} {
		n := 0x801
		if want == 0x1900 {
			n = 0x700
		}
		addr, err := mem.Alloc(n, 0x100)
		require.NoError(t, err)
		require.Equal(t, want, addr)
	}
	_, err = mem.Alloc(0x1000, 1)
	require.ErrorIs(t, err, ErrFull)
}

// The driver must notice a device that breaks the rules, or the tests of the
// device would not.
func TestDriverNoticesBadDevices(t *testing.T) {
	one := []vring.Segment{{Addr: 1, Len: 1}}
	for name, device := range map[string]func(d *Driver){
		"index too far": func(d *Driver) { d.used.Store16(2, 3) },
		"index behind":  func(d *Driver) { d.used.Store16(2, 0xffff) },
		"head out of range": func(d *Driver) {
			d.used.Store32(4, 8)
			d.used.Store16(2, 1)
		},
		"huge head": func(d *Driver) {
			d.used.Store32(4, 0x10000)
			d.used.Store16(2, 1)
		},
		"head not in flight": func(d *Driver) {
			d.used.Store32(4, 5)
			d.used.Store16(2, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, d := newDriver(t, Config{Size: 8})
			for range 2 {
				_, err := d.Add(one, nil)
				require.NoError(t, err)
			}
			d.Kick()
			_, err := d.Add(one, nil) // added, but the device does not know
			require.NoError(t, err)
			require.Equal(t, 3, d.InFlight())
			device(d)
			_, ok, err := d.Collect()
			require.ErrorIs(t, err, ErrDevice)
			require.False(t, ok)
		})
	}
}

func TestNoRoom(t *testing.T) {
	_, d := newDriver(t, Config{Size: 2, Indirect: 2})
	part := []vring.Segment{{Addr: 1, Len: 1}}
	three := append(append(part, part...), part...)
	for _, add := range []func() (uint16, error){
		func() (uint16, error) { return d.Add(nil, nil) },
		func() (uint16, error) { return d.Add(three, nil) },
		func() (uint16, error) { return d.AddIndirect(three, nil) },
	} {
		_, err := add()
		require.ErrorIs(t, err, ErrNoRoom)
		require.Equal(t, 2, d.Free())
	}
	_, err := d.AddMixed(three, nil, 1)
	require.NoError(t, err)
	require.Zero(t, d.Free())
}
