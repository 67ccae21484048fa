package disktest

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"golang.org/x/sys/unix"
)

func open(t *testing.T, rules ...Rule) (*Faults, disk.Engine) {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	s, err := disk.Open(path, disk.Options{})
	require.NoError(t, err)
	f := Wrap(s, rules...)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(bell) })
	e, err := f.NewEngine(disk.Auto, 8, bell)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return f, e
}

func run(t *testing.T, e disk.Engine, ios ...*disk.IO) {
	for _, io := range ios {
		e.Start(io)
	}
	for n := 0; n < len(ios); {
		done, _, err := e.Wait(true)
		require.NoError(t, err)
		n += len(done)
	}
}

func transfer(op disk.Op, off int64, b []byte) *disk.IO {
	return &disk.IO{Op: op, Offset: off, Length: int64(len(b)), Iov: []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}}
}

func TestRules(t *testing.T) {
	f, e := open(t,
		Rule{Ops: []disk.Op{disk.Write}, From: 8192, To: 12288, Err: unix.EIO},
		Rule{Ops: []disk.Op{disk.Read}, Skip: 1, Count: 2, Err: unix.ENOSPC},
		Rule{Ops: []disk.Op{disk.Flush}, Err: unix.EREMOTEIO},
	)
	b := make([]byte, 4096)
	b[0] = 7
	for off, want := range map[int64]error{0: nil, 4096: nil, 4608: unix.EIO, 8192: unix.EIO, 11776: unix.EIO, 12288: nil} {
		io := transfer(disk.Write, off, b)
		run(t, e, io)
		require.Equal(t, want, io.Err, "at %d", off)
	}
	for _, want := range []error{nil, unix.ENOSPC, unix.ENOSPC, nil, nil} {
		io := transfer(disk.Read, 8192, b)
		run(t, e, io)
		require.Equal(t, want, io.Err)
	}
	require.Equal(t, make([]byte, 4096), b, "what failed has not touched the disk")
	io := &disk.IO{Op: disk.Flush}
	run(t, e, io)
	require.Equal(t, unix.EREMOTEIO, io.Err)
	require.ErrorIs(t, f.Flush(), unix.EREMOTEIO)
	require.Equal(t, 7, f.Caught())
	f.Clear()
	run(t, e, io)
	require.NoError(t, io.Err)
}

func TestDelays(t *testing.T) {
	f, e := open(t,
		Rule{Ops: []disk.Op{disk.Write}, Count: 1, Delay: 200 * time.Millisecond},
		Rule{Ops: []disk.Op{disk.Write}, Count: 1, Delay: 400 * time.Millisecond, Err: unix.EIO},
	)
	b := make([]byte, 4096)
	b[0] = 7
	slow, failing, other := transfer(disk.Write, 0, b), transfer(disk.Write, 4096, b), transfer(disk.Write, 8192, b)
	began := time.Now()
	e.Start(slow)
	e.Start(failing)
	e.Start(other)
	after := map[*disk.IO]time.Duration{}
	for len(after) < 3 {
		done, _, err := e.Wait(true)
		require.NoError(t, err)
		for _, io := range done {
			after[io] = time.Since(began)
		}
	}
	require.Contains(t, after, other, "others pass")
	require.GreaterOrEqual(t, after[slow], 200*time.Millisecond)
	require.GreaterOrEqual(t, after[failing], 400*time.Millisecond)
	require.NoError(t, slow.Err)
	require.Equal(t, unix.EIO, failing.Err)
	require.Equal(t, 2, f.Caught())

	// Closing over a delay waits for it.
	f.Add(Rule{Delay: 20 * time.Millisecond})
	began = time.Now()
	e.Start(slow)
	require.NoError(t, e.Close())
	require.GreaterOrEqual(t, time.Since(began), 20*time.Millisecond)
}
