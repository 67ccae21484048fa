package vfiouser

import (
	"encoding/binary"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

func TestWhatTheClientFinds(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	info, err := c.Info()
	require.NoError(t, err)
	require.Equal(t, vfiouser.DeviceInfo{Flags: vfiouser.DevicePCI | vfiouser.DeviceReset, Regions: 9, IRQs: 5}, info)
	for i, size := range []uint64{0, 0x1000, 0x1000, 0, 0x4000, 0, 0, 4096, 0} {
		v, err := c.Region(i)
		require.NoError(t, err)
		require.Equal(t, size, v.Size, "region %d", i)
		require.Equal(t, size > 0, v.Flags == vfiouser.RegionRead|vfiouser.RegionWrite, "region %d", i)
		require.Equal(t, -1, v.FD)
	}
	for i, want := range []vfiouser.IRQInfo{
		{Flags: vfiouser.IRQEventfd | vfiouser.IRQMaskable | vfiouser.IRQAutomasked, Index: 0, Count: 1},
		{Index: 1},
		{Flags: vfiouser.IRQEventfd, Index: 2, Count: 40},
		{Index: 3},
		{Index: 4},
	} {
		got, err := c.IRQ(i)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func TestRegistersReachTheFunction(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	require.NoError(t, c.WriteRegion(4, 0x14, []byte{1, 2, 3}))
	require.NoError(t, c.PostRegion(4, 0x3ffe, []byte{4, 5}))
	b := make([]byte, 5)
	require.NoError(t, c.ReadRegion(4, 0x13, b))
	require.Equal(t, []byte{0, 1, 2, 3, 0}, b)
	require.NoError(t, c.ReadRegion(4, 0x3ffe, b[:2]))
	require.Equal(t, []byte{4, 5}, b[:2])
	require.ErrorIs(t, c.ReadRegion(4, 0x3fff, b), syscall.EINVAL)
	require.ErrorIs(t, c.ReadRegion(0, 0, b), syscall.EINVAL)
}

func TestConfigurationSpace(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	whole := make([]byte, 4096)
	require.NoError(t, c.ReadRegion(vfiouser.RegionConfig, 0, whole))
	require.Equal(t, uint32(0x10421af4), binary.LittleEndian.Uint32(whole))
	require.Equal(t, make([]byte, 4096-256), whole[256:])

	r.setConfig32(c, 0x20, 0xffffffff)
	require.Equal(t, uint32(0xffffc000), r.config32(c, 0x20))
	require.False(t, r.fn.controller().MSIXEnabled())
	r.setConfig32(c, 0x40, 0x80000000)
	require.True(t, r.fn.controller().MSIXEnabled())

	// The window of the capability behind MSI-X leads to BAR 4.
	r.setConfig32(c, 0x50, 4)
	r.setConfig32(c, 0x54, 0x100)
	r.setConfig32(c, 0x58, 4)
	r.setConfig32(c, 0x5c, 0x11223344)
	b := make([]byte, 4)
	require.NoError(t, c.ReadRegion(4, 0x100, b))
	require.Equal(t, []byte{0x44, 0x33, 0x22, 0x11}, b)
	require.Equal(t, uint32(0x11223344), r.config32(c, 0x5c))
}

// QEMU emulates the MSI-X table itself; what it makes of ours must not reach the
// function.
func TestMSIXStructuresAreMemory(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	b := make([]byte, 4096)
	require.NoError(t, c.ReadRegion(1, 0, b))
	require.NoError(t, c.ReadRegion(2, 0, b))
	require.Equal(t, make([]byte, 4096), b)
	require.NoError(t, c.WriteRegion(1, 16, []byte{7}))
	require.NoError(t, c.ReadRegion(1, 16, b[:1]))
	require.Equal(t, byte(7), b[0])
}

func TestDeviceReset(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	r.setConfig32(c, 0x40, 0x80000000)
	require.NoError(t, c.WriteRegion(4, 0, []byte{1}))
	r.fn.seen()
	require.NoError(t, c.Reset())
	require.Equal(t, []string{"Reset"}, r.fn.seen())
	require.False(t, r.fn.controller().MSIXEnabled())
	require.Zero(t, r.config32(c, 0x40)&0x80000000)
}

func TestDeviceResetIsAnsweredInTime(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	r.fn.set(func() { r.fn.hung = true })
	start := time.Now()
	require.ErrorIs(t, c.Reset(), syscall.EBUSY)
	require.Less(t, time.Since(start), 4*time.Second)
	_, err := c.Info()
	require.NoError(t, err)
}
