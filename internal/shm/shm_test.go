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

func TestHalfWordsNeedNoAlignedWordAroundThem(t *testing.T) {
	fd, m, err := NewMemory("half", 4096)
	require.NoError(t, err)
	defer m.Close()
	defer unix.Close(fd)
	w := Of(m.Bytes()[2:4])
	require.True(t, w.Aligned(2))
	require.False(t, w.Aligned(4))
	w.Store16(0, 0xbeef)
	require.Equal(t, uint16(0xbeef), w.Load16(0), "nothing outside the window is accessed")
	require.Panics(t, func() { w.Load16(1) })
	require.Panics(t, func() { Of(m.Bytes()[1:]).Load16(0) })
	require.True(t, Window{}.Aligned(4096))
}

func TestWindowCopies(t *testing.T) {
	fd, m, err := NewMemory("copies", 4096)
	require.NoError(t, err)
	defer m.Close()
	defer unix.Close(fd)
	w := Of(m.Bytes())
	for _, n := range []int{0, 1, 2, 3, 4, 5, 8, 100} {
		for off := range 5 {
			clear(w.Bytes())
			p, q := make([]byte, n), make([]byte, n)
			for i := range p {
				p[i] = byte(i + 1)
			}
			w.Write(off, p)
			require.Equal(t, p, w.Bytes()[off:off+n])
			require.Equal(t, make([]byte, off), w.Bytes()[:off])
			require.Equal(t, make([]byte, 10), w.Bytes()[off+n:off+n+10])
			w.Read(q, off)
			require.Equal(t, p, q)
		}
	}
	require.Panics(t, func() { w.Read(make([]byte, 2), 4095) })
	require.Panics(t, func() { w.Write(4095, make([]byte, 2)) })
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

func TestSealedMemoryKeepsItsSize(t *testing.T) {
	fd, m, err := NewMemory("sealed", 2*4096)
	require.NoError(t, err)
	defer m.Close()
	defer unix.Close(fd)
	require.NoError(t, Seal(fd))
	require.ErrorIs(t, unix.Ftruncate(fd, 4096), unix.EPERM)
	require.ErrorIs(t, unix.Ftruncate(fd, 3*4096), unix.EPERM)
	m.Bytes()[5000] = 1
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

func TestPrefetchTouchesNothing(t *testing.T) {
	fd, m, err := NewMemory("prefetch", 4096)
	require.NoError(t, err)
	defer unix.Close(fd)
	b := m.Bytes()
	require.NoError(t, unix.Ftruncate(fd, 0))
	Prefetch(b) // an access would fault
	require.NoError(t, m.Close())
	Prefetch(nil)
	Pause()
}
