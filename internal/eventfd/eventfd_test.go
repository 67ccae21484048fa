package eventfd

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRing(t *testing.T) {
	fd, err := New()
	require.NoError(t, err)
	defer unix.Close(fd)
	var b [8]byte
	_, err = unix.Read(fd, b[:])
	require.Equal(t, unix.EAGAIN, err, "nobody has rung")
	for range 3 {
		require.NoError(t, Ring(fd))
	}
	_, err = unix.Read(fd, b[:])
	require.NoError(t, err)
	require.EqualValues(t, 3, binary.NativeEndian.Uint64(b[:]))

	binary.NativeEndian.PutUint64(b[:], math.MaxUint64-1)
	_, err = unix.Write(fd, b[:])
	require.NoError(t, err)
	require.NoError(t, Ring(fd), "full")
	require.Zero(t, testing.AllocsPerRun(10, func() { _ = Ring(fd) }))

	require.ErrorIs(t, Ring(-1), unix.EBADF)
}
