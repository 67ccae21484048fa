package shm

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestWindowAccessIsLittleEndianAndExact(t *testing.T) {
	fd, m, err := NewMemory("window", 4096)
	require.NoError(t, err)
	defer m.Close()
	defer unix.Close(fd)
	w := Of(m.Bytes())

	w.Store32(8, 0x04030201)
	require.Equal(t, []byte{1, 2, 3, 4}, m.Bytes()[8:12])
	require.Equal(t, uint16(0x0201), w.Load16(8))
	require.Equal(t, uint16(0x0403), w.Load16(10))

	w.Store16(10, 0xbeef)
	require.Equal(t, uint32(0xbeef0201), w.Load32(8), "the neighbour is untouched")
	require.Equal(t, uint32(0), w.Load32(12))

	require.Panics(t, func() { w.Load32(4094) })
	require.Panics(t, func() { w.Load32(2) })
	require.Panics(t, func() { w.Store16(1, 0) })
	require.Panics(t, func() { w.Store16(4095, 0) })
}

func TestGuardReportsTruncatedMemory(t *testing.T) {
	fd, m, err := NewMemory("guard", 2*4096)
	require.NoError(t, err)
	defer m.Close()
	defer unix.Close(fd)
	require.NoError(t, unix.Ftruncate(fd, 4096))

	require.NoError(t, Guard(func() error { m.Bytes()[100] = 1; return nil }))
	require.ErrorIs(t, Guard(func() error { m.Bytes()[5000] = 1; return nil }), ErrGone)
	require.ErrorIs(t, Guard(func() error { Of(m.Bytes()).Store16(4096, 1); return nil }), ErrGone,
		"a fault inside assembly is a fault too")
	require.Panics(t, func() { _ = Guard(func() error { panic("other") }) })
}

func TestStoreLoadFence(t *testing.T) {
	// Dekker: without a store-load fence both sides can read 0.
	fd, m, err := NewMemory("fence", 4096)
	require.NoError(t, err)
	defer m.Close()
	defer unix.Close(fd)
	w := Of(m.Bytes())
	for range 20000 {
		w.Store32(0, 0)
		w.Store32(64, 0)
		start, seen := make(chan struct{}), make(chan uint16)
		side := func(mine, theirs int) {
			<-start
			w.Store16(mine, 1)
			Fence()
			seen <- w.Load16(theirs)
		}
		go side(0, 64)
		go side(64, 0)
		close(start)
		a, b := <-seen, <-seen
		require.False(t, a == 0 && b == 0)
	}
}
