package blkio

import (
	"os"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func vec(bufs ...[]byte) (v []unix.Iovec) {
	for _, b := range bufs {
		v = append(v, unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))})
	}
	return v
}

func TestShape(t *testing.T) {
	page, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	defer unix.Munmap(page)
	total, addrs, lengths := Shape(vec(page[512:1024], page[4096:8192]))
	require.EqualValues(t, 4608, total)
	require.EqualValues(t, 512, addrs&4095)
	require.EqualValues(t, 4096|512, lengths)
	_, addrs, _ = Shape(vec(page[:512], page[513:514]))
	require.EqualValues(t, 1, addrs&511)

	total, _, _ = Shape(nil)
	require.Zero(t, total)
	total, _, _ = Shape([]unix.Iovec{{Len: 1 << 63}})
	require.Negative(t, total)
	total, _, _ = Shape([]unix.Iovec{{Len: 1<<63 - 1}, {Len: 1<<63 - 1}, {Len: 1<<63 - 1}})
	require.Negative(t, total)
}

func TestSkipEveryOffset(t *testing.T) {
	b := []byte("abcdefghij")
	v := vec(b[:3], b[3:3], b[3:4], b[4:])
	orig := append([]unix.Iovec(nil), v...)
	var buf []unix.Iovec
	for n := range int64(len(b) + 1) {
		var left []unix.Iovec
		left, buf = Skip(v, buf, n)
		var got []byte
		for _, e := range left {
			got = append(got, unsafe.Slice(e.Base, e.Len)...)
		}
		require.Equal(t, string(b[n:]), string(got))
		require.Equal(t, orig, v, "the caller's vector is not written")
	}
	// Twice in a row: the second cut works on the buffer itself.
	left, buf := Skip(v, nil, 5)
	left, _ = Skip(left, buf, 2)
	require.Equal(t, "hij", string(unsafe.Slice(left[0].Base, left[0].Len)))
}

func TestTransferAndClear(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer f.Close()
	n, errno := Pwritev(int(f.Fd()), vec([]byte("hello "), []byte("world")), 1<<33, unix.RWF_DSYNC)
	require.Zero(t, errno)
	require.EqualValues(t, 11, n)
	a, b := make([]byte, 4), make([]byte, 100)
	n, errno = Preadv(int(f.Fd()), vec(a, b), 1<<33, 0)
	require.Zero(t, errno)
	require.EqualValues(t, 11, n)
	require.Equal(t, "hell", string(a))
	require.Equal(t, "o world", string(b[:7]))
	Clear(vec(a, b[:3]))
	require.Equal(t, make([]byte, 4), a)
	require.Equal(t, "orld", string(b[3:7]))
	_, errno = Preadv(-1, vec(a), 0, 0)
	require.Equal(t, unix.EBADF, errno)
	require.Equal(t, unix.ENOTTY, Range(int(f.Fd()), unix.BLKDISCARD, 0, 512))
}
