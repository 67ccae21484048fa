package uring

import (
	"bytes"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// shared returns n bytes of memory that is a file's.
func shared(t testing.TB, n int) []byte {
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(m)) })
	return m
}

// held returns how many bytes of this process the kernel holds.
func held(t testing.TB) int {
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	m := regexp.MustCompile(`VmPin:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, m)
	n, err := strconv.Atoi(string(m[1]))
	require.NoError(t, err)
	return n << 10
}

// counts says whether the kernel counts what it holds for who may lock all memory.
// Linux 6.18 does, 7.2 does not.
func counts(t testing.TB) bool {
	r := newRing(t, 4, 8)
	require.NoError(t, r.RegisterBuffers(1))
	before := held(t)
	require.NoError(t, r.SetBuffers(shared(t, 4096)))
	defer func() { require.NoError(t, r.SetBuffers()) }()
	return held(t) != before
}

func TestBufferStructuresHaveTheKernelsLayout(t *testing.T) {
	require.EqualValues(t, 32, unsafe.Sizeof(rsrcRegister{}))
	require.EqualValues(t, 16, unsafe.Offsetof(rsrcRegister{}.data))
	require.EqualValues(t, 32, unsafe.Sizeof(rsrcUpdate2{}))
	require.EqualValues(t, 24, unsafe.Offsetof(rsrcUpdate2{}.nr))
	require.EqualValues(t, 40, unsafe.Offsetof(SQE{}.buffer))
}

func TestRegisteredBuffers(t *testing.T) {
	const n = 64 << 10
	content := bytes.Repeat([]byte("abcdefgh"), n/8)
	fd, path := testFile(t, content)
	a, b := shared(t, n), shared(t, n)
	r := newRing(t, 8, 16)
	_, ok := r.Buffer(vec(a))
	require.False(t, ok, "there is no table")
	require.NoError(t, r.RegisterBuffers(3))
	before, holds := held(t), func(n int) {}
	if counts(t) {
		holds = func(n int) { require.Equal(t, before+n, held(t)) }
	}
	require.NoError(t, r.SetBuffers(a, b))
	holds(2 * n)

	ranges := [][]unix.Iovec{vec(b[100:200]), vec(a), vec(b[8192:], b[:1], b[5:7])}
	if !r.Supports(OpReadvFixed, OpWritevFixed) {
		ranges = ranges[:2]
	}
	for _, v := range ranges {
		i, ok := r.Buffer(v)
		require.True(t, ok)
		clear(a)
		clear(b)
		sqe := r.Next()
		sqe.Read(FD(fd), v, 3, 0, 1)
		sqe.InBuffer(i)
		c := one(t, r)
		at := 3
		for _, p := range v {
			part := unsafe.Slice(p.Base, p.Len)
			require.Equal(t, content[at:min(n, at+len(part))], part[:min(len(part), n-at)])
			at += len(part)
		}
		require.EqualValues(t, min(at, n)-3, c.Res)
	}
	copy(b, "written")
	for at, v := range [][]unix.Iovec{vec(b[:7]), vec(b[:3], b[3:7])}[:len(ranges)-1] {
		i, ok := r.Buffer(v)
		require.True(t, ok)
		sqe := r.Next()
		sqe.Write(FD(fd), v, int64(at*7), 0, 1)
		sqe.InBuffer(i)
		require.EqualValues(t, 7, one(t, r).Res)
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, "written", string(got[at*7:][:7]))
	}
	sqe := r.Next()
	sqe.Datasync(FD(fd), 1)
	sqe.InBuffer(0) // means nothing
	require.Zero(t, one(t, r).Res)

	outside := shared(t, n)
	over := unix.Iovec{Base: &a[n-1], Len: 2}
	for _, v := range [][]unix.Iovec{nil, vec(outside), vec(a[:1], b[:1]), vec(b[:1], a[:1]), {over}, {{Base: &a[1], Len: ^uint64(0)}}} {
		_, ok := r.Buffer(v)
		require.False(t, ok)
	}

	require.NoError(t, r.SetBuffers(b))
	holds(n)
	_, ok = r.Buffer(vec(a))
	require.False(t, ok)
	_, ok = r.Buffer(vec(b))
	require.True(t, ok)
	require.NoError(t, r.SetBuffers())
	holds(0)
	_, ok = r.Buffer(vec(b))
	require.False(t, ok)
}

// What the kernel refuses does not keep the rest out, and what does not fit is said.
func TestBuffersThatCannotBe(t *testing.T) {
	a := shared(t, 16<<10)
	none, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	defer unix.Munmap(none)
	r := newRing(t, 4, 8)
	require.ErrorIs(t, r.SetBuffers(a), ErrBuffers, "there is no table")
	require.NoError(t, r.RegisterBuffers(1))
	require.ErrorIs(t, r.SetBuffers(none, a), unix.EFAULT)
	_, ok := r.Buffer(vec(a[1:3]))
	require.True(t, ok)
	require.ErrorIs(t, r.SetBuffers(a[:4096], a[8192:]), ErrBuffers)
	_, ok = r.Buffer(vec(a[:4096]))
	require.True(t, ok)
	_, ok = r.Buffer(vec(a[8192:]))
	require.False(t, ok)
	require.NoError(t, r.SetBuffers(nil, a[:0]))
}

// A ring that is closed lets go at once.
func TestCloseLetsGoOfBuffers(t *testing.T) {
	a := shared(t, 1<<20)
	before := held(t)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := New(4, 8)
	require.NoError(t, err)
	require.NoError(t, r.RegisterBuffers(2))
	require.NoError(t, r.SetBuffers(a))
	require.Equal(t, counts(t), held(t) > before)
	require.NoError(t, r.Close())
	require.Equal(t, before, held(t))
}
