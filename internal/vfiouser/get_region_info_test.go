package vfiouser

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/shm"
)

func regionInfo(index, argsz uint32) []byte {
	return message1(CmdGetRegionInfo, 0, encoded(regionInfoSize, RegionInfo{Argsz: argsz, Index: index}.put))
}

func TestRegionWithoutMappedAreas(t *testing.T) {
	r := newRig(t, Options{})
	c := r.client(ClientOptions{})
	v, err := c.Region(RegionConfig)
	require.NoError(t, err)
	require.Equal(t, RegionView{RegionInfo{32, RegionRead | RegionWrite, 7, 0, 4096, 0}, nil, -1}, v)
	v, err = c.Region(RegionVGA)
	require.NoError(t, err)
	require.Equal(t, RegionView{RegionInfo{32, 0, 8, 0, 0, 0}, nil, -1}, v, "absent")
}

// withMappedAreas gives the rig's BAR 0 two mapped areas, which lie 8 KiB into
// a file.
func withMappedAreas(t *testing.T, r *rig) *shm.Mapping {
	fd, m, err := shm.NewMemory("bar", 128<<10)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close(); unix.Close(fd) })
	bar := &r.layout.Regions[RegionBAR0]
	bar.Areas = []Area{{0x1000, 0x1000}, {0x4000, 0x2000}}
	bar.FD, bar.Offset = fd, 0x2000
	return m
}

func TestRegionInfoIsATwoStep(t *testing.T) {
	r := newRig(t, Options{})
	withMappedAreas(t, r)
	r.raw()
	oob := make([]byte, unix.CmsgSpace(8))
	ask := func(argsz uint32) (payload []byte, fds []int) {
		r.send(regionInfo(0, argsz))
		b := make([]byte, 4096)
		n, oobn, _, _, err := r.sock.ReadMsgUnix(b, oob)
		require.NoError(t, err)
		require.Equal(t, uint32(n), u32(b, 4), "one message")
		require.Equal(t, FlagReply, u32(b, 8))
		fds, err = parseFDs(oob[:oobn])
		require.NoError(t, err)
		return b[HeaderSize:n], fds
	}
	whole := uint32(32 + 16 + 2*16)
	for argsz := uint32(32); argsz < whole; argsz++ {
		payload, fds := ask(argsz)
		require.Len(t, payload, 32, "the fixed part only")
		require.Empty(t, fds)
		info, err := parseRegionInfo(payload)
		require.NoError(t, err)
		require.Equal(t, RegionInfo{whole, 15, 0, 32, toyBARSize, 0x2000}, info)
	}
	payload, fds := ask(whole)
	defer closeFDs(fds)
	require.Len(t, payload, int(whole))
	require.Len(t, fds, 1)
	r.alive()
}

func TestMappedAreasAreTheDevicesMemory(t *testing.T) {
	r := newRig(t, Options{})
	memory := withMappedAreas(t, r)
	c := r.client(ClientOptions{})
	v, err := c.Region(0)
	require.NoError(t, err)
	defer unix.Close(v.FD)
	require.Equal(t, r.layout.Regions[0].Areas, v.Areas)
	m, err := v.MapArea(1)
	require.NoError(t, err)
	defer m.Close()
	m.Bytes()[0x10] = 0x5a
	require.Equal(t, byte(0x5a), memory.Bytes()[0x2000+0x4000+0x10])

	require.NoError(t, c.WriteRegion(0, 0x20, []byte{1}), "the rest is still trapped")
	require.Equal(t, byte(1), r.dev.see().memory[0][0x20])
}

func TestRegionInfoRefused(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	r.refused(syscall.EINVAL, regionInfo(9, 32))
	r.refused(syscall.EINVAL, regionInfo(^uint32(0), 32))
	r.refused(syscall.EINVAL, regionInfo(0, 31))
	r.refused(syscall.EINVAL, message1(CmdGetRegionInfo, 0, make([]byte, 31)))
}

func TestRegionIOFDs(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	ask := make([]byte, 16)
	ask[0], ask[8] = 64, 4
	r.send(message1(CmdGetRegionIOFDs, 0, ask))
	h, payload := r.receive()
	require.Equal(t, FlagReply, h.Flags)
	require.Equal(t, []byte{16, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0}, payload, "none")

	ask[8] = 9
	r.refused(syscall.EINVAL, message1(CmdGetRegionIOFDs, 0, ask))
	r.refused(syscall.EINVAL, message1(CmdGetRegionIOFDs, 0, ask[:15]))
}
