package lab

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

// Memory that cannot be taken over is refused by the error that says why.
func TestMemoryIsRefused(t *testing.T) {
	const page = 1 << 16 // on any machine
	var m memory
	for n := range vfiouser.MaxDMAMaps - 1 {
		m.regions = append(m.regions, region{addr: uint64(2*n) * page, size: page})
	}
	add := func(addr uint64) error {
		fd, err := unix.MemfdCreate("memory", 0)
		require.NoError(t, err)
		require.NoError(t, unix.Ftruncate(fd, page))
		return m.add(vfiouser.DMAMap{Addr: addr, Size: page}, fd)
	}
	require.ErrorIs(t, add(2*page), syscall.EEXIST)
	require.NoError(t, add(page))
	require.ErrorIs(t, add(3*page), syscall.ENOSPC)
	m.regions[1].release()
}
