package vringtest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
)

func newPackedDriver(t *testing.T, cfg Config) (*Memory, *PackedDriver) {
	mem, err := NewMemory(Range{Base: 0x1000, Size: 0x1000})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mem.Close()) })
	d, err := NewPackedDriver(mem, cfg)
	require.NoError(t, err)
	return mem, d
}

// The driver's bytes, written down by hand from the specification, so that driver
// and device cannot be wrong together.
func TestPackedDriverLayout(t *testing.T) {
	mem, d := newPackedDriver(t, Config{Packed: true, Size: 3, EventIdx: true, Indirect: 2, Start: 1, FirstID: 0xffff})
	ring := mem.Bytes(d.Queue().Desc, 48)
	require.Equal(t, []byte{0x80, 0x80}, ring[14:16], "used in this lap")
	require.Equal(t, []byte{0, 0}, ring[16+14:16+16], "used in the lap before")

	_, err := d.Add([]vring.Segment{{Addr: 0x102030405, Len: 7}}, []vring.Segment{{Addr: 9, Len: 8}})
	require.NoError(t, err)
	_, err = d.AddIndirect([]vring.Segment{{Addr: 0xa, Len: 1}}, []vring.Segment{{Addr: 0xb, Len: 2}})
	require.NoError(t, err)
	want := []byte{5, 4, 3, 2, 1, 0, 0, 0, 7, 0, 0, 0, 0xad, 0xde, 0, 0}           // flags wait for Kick
	want = append(want, 9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0xff, 0xff, 2|0x80, 0) // ID in the last
	require.Equal(t, want, ring[16:])
	table := d.Table(0)
	require.Equal(t, []byte{byte(table), byte(table >> 8), 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 4, 0x80}, ring[:16])
	require.Equal(t, []byte{0xa, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0xad, 0xde, 0, 0}, mem.Bytes(table, 16))
	require.Equal(t, []byte{0xb, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0xad, 0xde, 2, 0}, mem.Bytes(table+16, 16))

	require.True(t, d.Kick())
	require.Equal(t, []byte{0xad, 0xde, 1 | 0x80, 0}, ring[16+12:32])
	require.False(t, d.EnableInterrupts())
	require.Equal(t, []byte{1, 0x80, 2, 0}, mem.Bytes(d.Queue().Driver, 4))
	d.DisableInterrupts()
	require.Equal(t, []byte{0, 0, 1, 0}, mem.Bytes(d.Queue().Driver, 4))

	copy(ring[16+8:], []byte{9, 9, 0, 0, 0, 0, 0x80, 0x80}) // the second is done; nothing written
	require.True(t, d.EnableInterrupts())
	u, ok, err := d.Collect()
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, Used{Head: 0}, u)
	copy(ring[32+8:], []byte{9, 1, 0, 0, 0xff, 0xff, 0x82, 0x80})
	u, ok, err = d.Collect()
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, Used{Head: 0xffff, Written: 0x109}, u)
	require.Equal(t, []int{3, 0}, []int{d.Free(), d.InFlight()})
	require.False(t, d.EnableInterrupts())
	require.Equal(t, []byte{1, 0, 2, 0}, mem.Bytes(d.Queue().Driver, 4), "the other wrap counter")
}

// When the driver notifies, by what the device wrote.
func TestPackedDriverNotifies(t *testing.T) {
	part := []vring.Segment{{Addr: 1, Len: 1}}
	for _, c := range []struct {
		event    uint32
		eventIdx bool
		want     bool
	}{
		{0, true, true},
		{1 << 16, true, false},
		{2<<16 | 0x8000 | 3, true, false},
		{2<<16 | 0x8000 | 4, true, true}, // 4 and 0 are added
		{2 << 16, true, true},
		{2<<16 | 1, true, false},
		{2<<16 | 4, true, false},
		{2<<16 | 1, false, true},
	} {
		_, d := newPackedDriver(t, Config{Packed: true, Size: 5, EventIdx: c.eventIdx, Start: 4})
		d.device.Store32(0, c.event)
		for range 2 {
			_, err := d.Add(part, nil)
			require.NoError(t, err)
		}
		require.Equal(t, c.want, d.Kick(), "%#x", c.event)
		require.False(t, d.Kick(), "nothing was added")
	}
}

func TestPackedDriverNoticesBadDevices(t *testing.T) {
	one := []vring.Segment{{Addr: 1, Len: 1}}
	for name, device := range map[string]func(d *PackedDriver){
		"ID out of range":   func(d *PackedDriver) { d.SetDesc(0, 0, 0, 18, FlagAvail|FlagUsed) },
		"ID below":          func(d *PackedDriver) { d.SetDesc(0, 0, 0, 9, FlagAvail|FlagUsed) },
		"ID not in flight":  func(d *PackedDriver) { d.SetDesc(0, 0, 0, 15, FlagAvail|FlagUsed) },
		"used twice":        func(d *PackedDriver) { useTwice(d, 10) },
		"used, none flying": func(d *PackedDriver) { useTwice(d, 10, 11, 12) },
	} {
		t.Run(name, func(t *testing.T) {
			_, d := newPackedDriver(t, Config{Packed: true, Size: 8, FirstID: 10})
			for range 3 {
				_, err := d.Add(one, nil)
				require.NoError(t, err)
			}
			d.Kick()
			device(d)
			for range 3 {
				_, ok, err := d.Collect()
				if ok {
					continue
				}
				require.ErrorIs(t, err, ErrDevice)
				return
			}
			_, ok, err := d.Collect()
			require.False(t, ok)
			require.ErrorIs(t, err, ErrDevice)
		})
	}
}

// useTwice uses the given buffers, and then the first of them again.
func useTwice(d *PackedDriver, ids ...uint16) {
	for i, id := range append(ids, ids[0]) {
		d.SetDesc(uint16(i), 0, 0, id, FlagAvail|FlagUsed)
	}
}

func TestPackedNoRoom(t *testing.T) {
	_, d := newPackedDriver(t, Config{Packed: true, Size: 2, Indirect: 2})
	part := []vring.Segment{{Addr: 1, Len: 1}}
	three := append(append(part, part...), part...)
	for _, c := range []struct {
		add  func() (uint16, error)
		want error
	}{
		{func() (uint16, error) { return d.Add(nil, nil) }, ErrNoRoom},
		{func() (uint16, error) { return d.Add(three, nil) }, ErrNoRoom},
		{func() (uint16, error) { return d.AddIndirect(three, nil) }, ErrNoRoom},
		{func() (uint16, error) { return d.AddMixed(three, nil, 1) }, ErrMixed},
	} {
		_, err := c.add()
		require.ErrorIs(t, err, c.want)
		require.Equal(t, 2, d.Free())
	}
	for range 2 {
		_, err := d.AddIndirect(part, part)
		require.NoError(t, err)
	}
	require.Zero(t, d.Free())
	require.Equal(t, 2, d.InFlight())
}
