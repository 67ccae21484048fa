package uring

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func newRing(t testing.TB, entries, cq uint32) *Ring {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	r, err := New(entries, cq)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func one(t testing.TB, r *Ring) CQE {
	t.Helper()
	require.NoError(t, r.SubmitAndWait(1))
	var out [2]CQE
	require.Equal(t, 1, r.Reap(out[:]))
	return out[0]
}

func vec(bufs ...[]byte) (v []unix.Iovec) {
	for _, b := range bufs {
		v = append(v, unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))})
	}
	return v
}

func testFile(t testing.TB, content []byte) (int, string) {
	path := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(path, content, 0o600))
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd, path
}

func TestStructuresHaveTheKernelsLayout(t *testing.T) {
	require.EqualValues(t, 120, unsafe.Sizeof(params{}))
	require.EqualValues(t, 40, unsafe.Offsetof(params{}.sqHead))
	require.EqualValues(t, 80, unsafe.Offsetof(params{}.cqHead))
	require.EqualValues(t, 100, unsafe.Offsetof(params{}.cqCQEs))
	require.EqualValues(t, sqeSize, unsafe.Sizeof(SQE{}))
	require.EqualValues(t, 32, unsafe.Offsetof(SQE{}.userData))
	require.EqualValues(t, cqeSize, unsafe.Sizeof(CQE{}))
	require.EqualValues(t, 8, unsafe.Offsetof(SQE{}.off), "where a command has its number")
	require.EqualValues(t, 48, unsafe.Offsetof(SQE{}.command))
}

// Completions ring, also those that wait to be asked for.
func TestEventfdRings(t *testing.T) {
	r := newRing(t, 4, 8)
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	require.NoError(t, err)
	defer unix.Close(bell)
	require.NoError(t, r.RegisterEventfd(bell))
	var p [2]int
	require.NoError(t, unix.Pipe2(p[:], unix.O_CLOEXEC))
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	r.Next().Poll(FD(p[0]), unix.POLLIN, false, 7)
	require.NoError(t, r.Submit())
	rung := func(timeout int) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(bell), Events: unix.POLLIN}}, timeout)
		require.NoError(t, err)
		return n == 1
	}
	require.False(t, rung(10))
	_, err = unix.Write(p[1], []byte{1})
	require.NoError(t, err)
	require.True(t, rung(10_000))
	require.NoError(t, r.Submit())
	var out [1]CQE
	require.Equal(t, 1, r.Reap(out[:]))
	require.EqualValues(t, 7, out[0].UserData)
}

// A file whose driver has no commands refuses them.
func TestCommandsAreForDrivers(t *testing.T) {
	r := newRing(t, 4, 8)
	if !r.Supports(OpCommand) {
		t.Skip("this kernel's io_uring has no commands")
	}
	fd, _ := testFile(t, nil)
	r.Next().Command(FD(fd), 1, [2]uint64{}, 3)
	c := one(t, r)
	require.EqualValues(t, 3, c.UserData)
	require.EqualValues(t, -int32(unix.EOPNOTSUPP), c.Res)
}

func TestEveryRungOfTheLadder(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, flags := range ladder {
		r, err := setup(4, 8, flags|SetupClamp|SetupCQSize)
		require.NoError(t, err, "flags %#x", flags)
		require.True(t, r.Supports(OpNop, OpReadv, OpWritev, OpRead, OpWrite, OpFsync, OpFallocate, OpPollAdd, OpAsyncCancel))
		require.False(t, r.Supports(OpNop, 255), "no kernel has so many")
		r.Next().Nop(7)
		require.Equal(t, CQE{UserData: 7}, one(t, r))
		require.NoError(t, r.Close())
		require.NoError(t, r.Close(), "closing twice is harmless")
	}
}

func TestUnknownModeIsRefusedWithEINVAL(t *testing.T) {
	// What the ladder relies on to go one rung down.
	_, err := setup(4, 8, 1<<31)
	require.ErrorIs(t, err, unix.EINVAL)
}

func TestFileOperations(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		r := newRing(t, 4, 8)
		fd, path := testFile(t, bytes.Repeat([]byte{'x'}, 1<<16))
		f := FD(fd)
		if fixed {
			require.NoError(t, r.RegisterFiles(fd))
			f = Slot(0)
		}
		a, b := bytes.Repeat([]byte{'a'}, 100), bytes.Repeat([]byte{'b'}, 50)
		r.Next().Write(f, vec(a, b), 10, unix.RWF_DSYNC, 1)
		require.Equal(t, CQE{UserData: 1, Res: 150}, one(t, r))
		r.Next().Write(f, vec(b), 1000, 0, 2)
		require.Equal(t, CQE{UserData: 2, Res: 50}, one(t, r))
		r.Next().Datasync(f, 3)
		require.Equal(t, CQE{UserData: 3}, one(t, r))

		got := make([]byte, 150)
		r.Next().Read(f, vec(got[:1], got[1:]), 10, 0, 4)
		require.Equal(t, CQE{UserData: 4, Res: 150}, one(t, r))
		require.Equal(t, append(bytes.Clone(a), b...), got)
		r.Next().Read(f, vec(got), 1<<16-7, 0, 5)
		require.Equal(t, CQE{UserData: 5, Res: 7}, one(t, r), "short at the end of the file")

		r.Next().Fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 8192, 6)
		require.Equal(t, CQE{UserData: 6}, one(t, r))
		on, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, b, on[1000:1050])
		require.Equal(t, make([]byte, 8192), on[4096:4096+8192])
		require.Equal(t, byte('x'), on[4096+8192])

		r.Next().Read(FD(-1), vec(got), 0, 0, 7)
		require.Equal(t, -int32(unix.EBADF), one(t, r).Res)
	}
}

func TestPollAndCancel(t *testing.T) {
	for _, multi := range []bool{false, true} {
		r := newRing(t, 4, 8)
		ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		require.NoError(t, err)
		defer unix.Close(ev)
		r.Next().Poll(FD(ev), unix.POLLIN, multi, 1)
		require.NoError(t, r.Submit())
		for range 3 {
			time.AfterFunc(5*time.Millisecond, func() { unix.Write(ev, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
			c := one(t, r)
			require.EqualValues(t, 1, c.UserData)
			require.NotZero(t, c.Res&unix.POLLIN)
			require.Equal(t, multi, c.More())
			var buf [8]byte
			_, err = unix.Read(ev, buf[:])
			require.NoError(t, err)
			if !multi {
				r.Next().Poll(FD(ev), unix.POLLIN, false, 1)
				require.NoError(t, r.Submit())
			}
		}
		r.Next().Cancel(1, 2)
		require.NoError(t, r.SubmitAndWait(2))
		var out [4]CQE
		require.Equal(t, 2, r.Reap(out[:]))
		results := map[uint64]int32{out[0].UserData: out[0].Res, out[1].UserData: out[1].Res}
		require.Equal(t, map[uint64]int32{1: -int32(unix.ECANCELED), 2: 0}, results)
	}
}

func TestQueueFullAndWrap(t *testing.T) {
	r := newRing(t, 4, 8)
	var out [8]CQE
	for round := range 10 {
		for i := range 4 {
			r.Next().Nop(uint64(round*4 + i))
		}
		require.Nil(t, r.Next())
		require.Equal(t, 4, r.Prepared())
		require.NoError(t, r.SubmitAndWait(4))
		require.Zero(t, r.Prepared())
		require.Equal(t, 4, r.Reap(out[:]))
		for i := range 4 {
			require.EqualValues(t, round*4+i, out[i].UserData)
		}
	}
	require.Zero(t, r.Reap(out[:]))
}

func TestCompletionsBeyondTheQueueAreNotLost(t *testing.T) {
	for _, flags := range ladder {
		runtime.LockOSThread()
		r, err := setup(8, 8, flags|SetupClamp|SetupCQSize)
		require.NoError(t, err)
		const n = 50
		for i := range n {
			for r.Next() == nil {
				err := r.Submit()
				require.True(t, err == nil || errors.Is(err, unix.EBUSY), "%v", err)
			}
			r.sqes[(r.next-1)&r.sqMask].Nop(uint64(i))
		}
		seen := make(map[uint64]bool)
		var out [3]CQE
		for range 10 * n {
			err := r.Submit()
			require.True(t, err == nil || errors.Is(err, unix.EBUSY), "%v", err)
			for _, c := range out[:r.Reap(out[:])] {
				require.False(t, seen[c.UserData])
				seen[c.UserData] = true
			}
		}
		require.Len(t, seen, n)
		require.NoError(t, r.Close())
		runtime.UnlockOSThread()
	}
}

func TestWaitSurvivesSignals(t *testing.T) {
	r := newRing(t, 4, 8)
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(ev)
	tid := unix.Gettid()
	go func() {
		for range 20 {
			time.Sleep(time.Millisecond)
			// The signal that the scheduler preempts with: a handler is installed.
			unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
		}
		unix.Write(ev, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}()
	r.Next().Poll(FD(ev), unix.POLLIN, false, 1)
	require.Equal(t, CQE{UserData: 1, Res: unix.POLLIN}, one(t, r))
}

func TestOtherThreadIsRefused(t *testing.T) {
	r := newRing(t, 4, 8)
	if r.Setup()&SetupSingleIssuer == 0 {
		t.Skip("this kernel has no single-issuer mode")
	}
	r.Next().Nop(1)
	errs := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		errs <- r.Submit()
	}()
	err := <-errs
	// It is not the issuer, or has no table of rings, or not this one in it.
	require.Contains(t, []error{unix.EEXIST, unix.EINVAL, unix.EBADF}, err)
	require.Equal(t, CQE{UserData: 1}, one(t, r))
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	r := newRing(t, 8, 16)
	fd, _ := testFile(t, make([]byte, 8192))
	require.NoError(t, r.RegisterFiles(fd))
	v := vec(make([]byte, 512), make([]byte, 512))
	out := make([]CQE, 8)
	require.Zero(t, testing.AllocsPerRun(200, func() {
		r.Next().Write(Slot(0), v, 0, 0, 1)
		r.Next().Read(Slot(0), v[:1], 4096, 0, 2)
		if r.SubmitAndWait(2) != nil || r.Reap(out) != 2 || out[0].Res <= 0 {
			panic("failed")
		}
	}))
}

// BenchmarkNop is to submit a batch and to reap it. The median of what batches took
// does not show what else the machine was doing.
func BenchmarkNop(b *testing.B) {
	for _, batch := range []int{1, 32} {
		b.Run(map[int]string{1: "batch=1", 32: "batch=32"}[batch], func(b *testing.B) {
			r := newRing(b, 64, 128)
			out := make([]CQE, 64)
			took := make([]time.Duration, 0, b.N/batch+1)
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += batch {
				start := time.Now()
				for range batch {
					r.Next().Nop(1)
				}
				if r.SubmitAndWait(batch) != nil || r.Reap(out) != batch {
					b.Fatal("lost completions")
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2])/float64(batch), "median-ns/op")
		})
	}
}

func BenchmarkIdlePoll(b *testing.B) {
	r := newRing(b, 64, 128)
	out := make([]CQE, 64)
	for b.Loop() {
		if r.Submit() != nil || r.Reap(out) != 0 {
			b.Fatal("completion from nowhere")
		}
	}
}
