package disk

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/eventfd"
	"github.com/vblk-ep/vblk-ep/internal/uring"
	"github.com/vblk-ep/vblk-ep/internal/uring/uringtest"
	"golang.org/x/sys/unix"
)

// engines runs f with every engine, on a doorbell that blocks and one that does not.
func engines(t *testing.T, f func(t *testing.T, store Store, e Engine, bell int)) {
	for _, kind := range []EngineKind{URing, Plain, Auto} {
		for _, flags := range []int{0, unix.EFD_NONBLOCK} {
			for _, path := range []string{"file", "null:1M"} {
				t.Run(fmt.Sprintf("%s/flags=%#x/%s", kind, flags, path), func(t *testing.T) {
					runtime.LockOSThread()
					defer runtime.UnlockOSThread()
					if path == "file" {
						path = blktest.File(t, mib)
					}
					store, err := Open(path, Options{})
					require.NoError(t, err)
					defer store.Close()
					bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|flags)
					require.NoError(t, err)
					defer unix.Close(bell)
					e, err := store.NewEngine(kind, 4, bell)
					require.NoError(t, err)
					defer e.Close()
					f(t, store, e, bell)
				})
			}
		}
	}
}

func TestDoorbell(t *testing.T) {
	engines(t, func(t *testing.T, _ Store, e Engine, bell int) {
		for range 3 {
			done, rung, err := e.Wait(false)
			require.NoError(t, err)
			require.Empty(t, done)
			require.False(t, rung)
			time.AfterFunc(5*time.Millisecond, func() { eventfd.Ring(bell) })
			done, rung, err = e.Wait(true)
			require.NoError(t, err)
			require.Empty(t, done)
			require.True(t, rung)
			eventfd.Ring(bell)
			eventfd.Ring(bell)
			_, rung, err = e.Wait(true)
			require.NoError(t, err)
			require.True(t, rung)
			_, rung, err = e.Wait(false)
			require.NoError(t, err)
			require.False(t, rung, "several are one")
		}
	})
}

// Who never sleeps finds out from Ready when to look.
func TestReady(t *testing.T) {
	engines(t, func(t *testing.T, _ Store, e Engine, bell int) {
		io := transfer(Read, 0, aligned(t, 4096))
		for range 100 {
			require.False(t, e.Ready())
			e.Start(io)
			done, _, err := e.Wait(false)
			for end := time.Now().Add(10 * time.Second); err == nil && len(done) == 0; {
				require.True(t, time.Now().Before(end), "the completion was not seen")
				if e.Ready() {
					done, _, err = e.Wait(false)
				}
			}
			require.NoError(t, err)
			require.Equal(t, []*IO{io}, done)
		}
	})
}

func TestNoRingIsLostUnderLoad(t *testing.T) {
	engines(t, func(t *testing.T, _ Store, e Engine, bell int) {
		// A ring that is lost leaves Wait asleep: each is sent only after the one
		// before was seen.
		const rings = 300
		seen := make(chan struct{}, 1)
		go func() {
			for range rings {
				eventfd.Ring(bell)
				<-seen
			}
		}()
		mem := aligned(t, 4096)
		ios := []*IO{transfer(Read, 0, mem), transfer(Write, 4096, mem)}
		idle := append([]*IO(nil), ios...)
		for n, loads := 0, 0; n < rings; {
			if loads < 1000 {
				for _, io := range idle {
					e.Start(io)
					loads++
				}
				idle = idle[:0]
			}
			done, rung, err := e.Wait(true)
			require.NoError(t, err)
			idle = append(idle, done...)
			if rung {
				n++
				seen <- struct{}{}
			}
		}
		for len(idle) < len(ios) {
			done, _, err := e.Wait(true)
			require.NoError(t, err)
			idle = append(idle, done...)
		}
	})
}

func TestDepthIsHeld(t *testing.T) {
	for _, kind := range []EngineKind{URing, Plain} {
		r := newRig(t, blktest.File(t, mib), Options{}, kind, 4)
		var ios []*IO
		for range 6 {
			ios = append(ios, transfer(Read, 0, aligned(t, 4096)))
		}
		r.do(ios...)
		for i, io := range ios {
			if i < 4 {
				require.NoError(t, io.Err)
			} else {
				require.ErrorIs(t, io.Err, unix.EBUSY)
			}
		}
		r.do(ios[:4]...)
		_, err := r.store.NewEngine(kind, 0, r.bell)
		require.ErrorIs(t, err, unix.EINVAL)
		_, err = r.store.NewEngine(kind, MaxDepth+1, r.bell)
		require.ErrorIs(t, err, unix.EINVAL)
	}
}

func TestLargestDepth(t *testing.T) {
	for _, kind := range []EngineKind{URing, Plain} {
		r := newRig(t, blktest.File(t, mib), Options{}, kind, MaxDepth)
		mem := aligned(t, 4096)
		ios := make([]*IO, MaxDepth)
		for i := range ios {
			ios[i] = transfer(Read, 0, mem)
		}
		r.do(ios...)
		for _, io := range ios {
			require.NoError(t, io.Err)
		}
	}
}

// The other bell ends a sleep, and is not taken for the doorbell.
func TestOtherBell(t *testing.T) {
	engines(t, func(t *testing.T, _ Store, e Engine, bell int) {
		other, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		require.NoError(t, err)
		defer unix.Close(other)
		e.Listen(other)
		for range 3 {
			timer := time.AfterFunc(5*time.Millisecond, func() { eventfd.Ring(other) })
			done, rung, err := e.Wait(true)
			require.NoError(t, err)
			require.False(t, timer.Stop())
			require.Empty(t, done)
			require.False(t, rung)
		}
		eventfd.Ring(other)
		eventfd.Ring(bell)
		for rung := false; !rung; {
			_, rung, err = e.Wait(true)
			require.NoError(t, err)
		}
		time.AfterFunc(5*time.Millisecond, func() { eventfd.Ring(bell) })
		for rung := false; !rung; { // what is left of the other one ends at most one sleep
			_, rung, err = e.Wait(true)
			require.NoError(t, err)
		}
		require.NoError(t, e.Close()) // while other is open
	})
}

func TestBadDoorbellIsAnError(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	store, err := Open(blktest.File(t, mib), Options{})
	require.NoError(t, err)
	defer store.Close()
	for _, kind := range []EngineKind{URing, Plain} {
		e, err := store.NewEngine(kind, 4, 9999)
		require.NoError(t, err)
		_, _, err = e.Wait(true)
		require.ErrorIs(t, err, unix.EBADF)
		require.NoError(t, e.Close())
	}
}

func TestKernelThatRefusesIoUring(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EPERM, unix.ENOSYS} {
		var log strings.Builder
		store, err := Open(blktest.File(t, mib), Options{Log: logTo(&log)})
		require.NoError(t, err)
		var (
			name     string
			auto, ur error
		)
		uringtest.Refused(t, errno, func() {
			for range 2 {
				var e Engine
				if e, auto = store.NewEngine(Auto, 4, -1); auto == nil {
					name = e.Name()
					e.Close()
				}
			}
			_, ur = store.NewEngine(URing, 4, -1)
		})
		require.NoError(t, auto)
		require.Equal(t, "plain", name)
		require.ErrorIs(t, ur, errno)
		require.Equal(t, 1, strings.Count(log.String(), "no io_uring"), "said once: %s", log.String())
		require.NoError(t, store.Close())
	}
}

func TestChoiceOfEngineIsLogged(t *testing.T) {
	for kind, name := range map[EngineKind]string{Auto: "io_uring", URing: "io_uring", Plain: "plain"} {
		var log strings.Builder
		r := newRig(t, blktest.File(t, mib), Options{Log: logTo(&log)}, kind, 4)
		require.Equal(t, name, r.e.Name())
		require.Contains(t, log.String(), "engine="+name)
		parsed, ok := ParseEngineKind(kind.String())
		require.True(t, ok)
		require.Equal(t, kind, parsed)
	}
	_, ok := ParseEngineKind("aio")
	require.False(t, ok)
}

func TestNullReadsZeroes(t *testing.T) {
	r := newRig(t, "null:8K", Options{}, Auto, 4)
	require.Equal(t, "null", r.e.Name())
	mem := noise(aligned(t, 8192))
	r.must(transfer(Write, 0, mem))
	require.NotEqual(t, make([]byte, 8192), mem, "writes leave memory alone")
	r.must(transfer(Read, 0, mem[:100], mem[200:]))
	require.Equal(t, make([]byte, 100), mem[:100])
	require.NotEqual(t, make([]byte, 100), mem[100:200])
	require.Equal(t, make([]byte, 8192-200), mem[200:])
	for _, op := range []Op{Flush, Discard, WriteZeroes} {
		r.must(&IO{Op: op, Length: 8192})
	}
	past := transfer(Read, 4096, mem)
	r.do(past)
	require.Equal(t, unix.EIO, past.Err)

	// Memory that vanished fails its own operation, and no other.
	fd, err := unix.MemfdCreate("gone", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(fd)
	require.NoError(t, unix.Ftruncate(fd, 4096))
	gone, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	defer unix.Munmap(gone)
	require.NoError(t, unix.Ftruncate(fd, 0))
	noise(mem)
	bad, good := transfer(Read, 0, mem), transfer(Read, 0, mem)
	bad.Iov, bad.Length = vec(gone[:4096:4096][:1]), 1
	r.do(bad, good)
	require.Equal(t, unix.EFAULT, bad.Err)
	require.NoError(t, good.Err)
	require.Equal(t, make([]byte, 8192), mem)
}

// The kernel moves at most 2 GiB less a page at once: a real short transfer, and
// one that stops inside a vector.
func TestTransferBeyondWhatTheKernelMovesAtOnce(t *testing.T) {
	const size, marker = int64(2<<30 + 16*mib), int64(2<<30 - 8192)
	path := blktest.File(t, size)
	want := noise(make([]byte, 16384))
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(want, marker)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	for _, kind := range []EngineKind{URing, Plain} {
		r := newRig(t, path, Options{}, kind, 2)
		same, tail := aligned(t, 4*mib), aligned(t, 20*mib)
		io := &IO{Op: Read, Length: size}
		for off := int64(0); off < size-20*mib; off += 4 * mib {
			io.Iov = append(io.Iov, vec(same)...)
		}
		io.Iov = append(io.Iov, vec(tail)...)
		before := append([]unix.Iovec(nil), io.Iov...)
		r.must(io)
		require.Equal(t, before, io.Iov)
		require.NotEmpty(t, io.cut, "it was cut inside a vector")
		at := marker - (size - 20*mib)
		require.Equal(t, want, tail[at:at+16384])
		require.NoError(t, r.e.Close())
		require.NoError(t, r.store.Close())
	}
}

func TestFileThatShrinksIsAnError(t *testing.T) {
	for _, kind := range []EngineKind{URing, Plain} {
		for _, direct := range []DirectMode{DirectAuto, DirectOff} {
			path := blktest.File(t, mib)
			r := newRig(t, path, Options{Direct: direct}, kind, 2)
			require.NoError(t, os.Truncate(path, mib/2+100))
			io := transfer(Read, mib/2-4096, aligned(t, 8192))
			r.do(io)
			require.Equal(t, unix.EIO, io.Err)
			changed, err := r.store.Refresh()
			require.NoError(t, err)
			require.True(t, changed)
			require.EqualValues(t, mib/2, r.store.Info().Size, "the last whole block")
			r.do(io)
			require.Equal(t, unix.EIO, io.Err, "and now it is not even asked for")
		}
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	for _, path := range []string{blktest.File(t, 4*mib), "null:4M"} {
		for _, kind := range []EngineKind{URing, Plain} {
			r := newRig(t, path, Options{}, kind, 8)
			mem := aligned(t, 64<<10)
			ios := []*IO{
				transfer(Write, 0, mem[:4096]),
				transfer(Write, 8192, mem[:512], mem[512:4096]),
				transfer(Write, 16384, mem[1:513]),
				transfer(Read, 0, mem[:4096], mem[4096:]),
				{Op: Flush},
				{Op: WriteZeroes, Offset: mib, Length: 4096},
				{Op: Discard, Offset: 2 * mib, Length: 4096, Durable: true},
			}
			ios[0].Durable = true
			cycle := func() {
				for _, io := range ios {
					r.e.Start(io)
				}
				for n := 0; n < len(ios); {
					done, _, err := r.e.Wait(true)
					for _, io := range done {
						err = errors.Join(err, io.Err)
					}
					if err != nil {
						panic(err)
					}
					n += len(done)
				}
			}
			cycle()
			require.Zero(t, testing.AllocsPerRun(50, cycle), "%s %s", r.e.Name(), path)
			require.NoError(t, r.e.Close())
			require.NoError(t, r.store.Close())
		}
	}
}

// Close learns of the end of each operation on a thread, also where the kernel has ended
// the watch of their bell after one.
func TestCloseOverOffloadedOperations(t *testing.T) {
	path := blktest.File(t, 64*mib)
	for range 5 {
		r := newRig(t, path, Options{}, URing, 2)
		e := r.e.(*uringEngine)
		require.NoError(t, e.enter(false))
		e.next().Cancel(tagOffload, tagCancel)
		var cqes [3]uring.CQE
		for n := 0; n < 2; n += e.ring.Reap(cqes[:]) {
			require.NoError(t, e.enter(true))
		}
		e.next().Poll(uring.FD(e.off.bell.fd), unix.POLLIN, false, tagOffload)

		mem := aligned(t, 32*mib+4096) // what is not aligned is copied
		small, large := transfer(Read, 0, mem[1:513]), transfer(Read, mib, mem[1:][:32*mib])
		r.e.Start(large)
		r.e.Start(small)
		require.NoError(t, r.e.Close())
		require.NoError(t, small.Err)
		require.NoError(t, large.Err)
		require.EqualValues(t, 32*mib, large.moved)
		require.NoError(t, r.store.Close())
	}
}
