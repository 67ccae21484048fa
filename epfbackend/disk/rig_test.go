package disk

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// TestMain checks that the tests leave no descriptor behind.
func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	// What the runtime opens for itself it opens once.
	if f, err := os.CreateTemp("", "warm"); err == nil {
		f.Close()
		os.Remove(f.Name())
	}
	before := descriptors()
	code := m.Run()
	for fd, target := range descriptors() {
		if _, ok := before[fd]; !ok && target != "anon_inode:[eventpoll]" {
			fmt.Fprintf(os.Stderr, "descriptor %s -> %s was left open\n", fd, target)
			code = 1
		}
	}
	os.Exit(code)
}

func descriptors() map[string]string {
	fds := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil {
			fds[e.Name()] = target
		}
	}
	return fds
}

// rig is a store with an engine, and the file or device to look at from outside.
type rig struct {
	t     testing.TB
	store Store
	e     Engine
	bell  int
	medium
}

// medium is a disk, and the file that its content ends up in.
type medium struct {
	path, backing string
	start         int64 // of the disk in the backing file
}

// media are the disks that everything is tried on. Each is size bytes long.
func media() map[string]func(t testing.TB, size int64) medium {
	file := func(path string) medium { return medium{path: path, backing: path} }
	loop := func(t testing.TB, size int64, o blktest.LoopOptions) medium {
		backing := blktest.File(t, size)
		return medium{path: blktest.Loop(t, backing, o), backing: backing}
	}
	return map[string]func(t testing.TB, size int64) medium{
		"ext4": func(t testing.TB, size int64) medium { return file(blktest.File(t, size)) },
		"ext4on4k": func(t testing.TB, size int64) medium {
			device := blktest.Loop(t, blktest.File(t, 32*mib), blktest.LoopOptions{BlockSize: 4096})
			out, err := exec.Command("mkfs.ext4", "-q", "-F", device).CombinedOutput()
			require.NoError(t, err, "%s", out)
			return file(fileIn(t, blktest.Mount(t, device, "ext4", ""), size))
		},
		"tmpfs": func(t testing.TB, size int64) medium {
			return file(fileIn(t, blktest.Mount(t, "none", "tmpfs", ""), size))
		},
		"loop":   func(t testing.TB, size int64) medium { return loop(t, size, blktest.LoopOptions{}) },
		"loop4k": func(t testing.TB, size int64) medium { return loop(t, size, blktest.LoopOptions{BlockSize: 4096}) },
		"partition": func(t testing.TB, size int64) medium {
			m := loop(t, size+2*mib, blktest.LoopOptions{Partitions: true})
			m.path, m.start = blktest.Partition(t, m.path, 1, mib, size), mib
			return m
		},
	}
}

func fileIn(t testing.TB, dir string, size int64) string {
	path := filepath.Join(dir, "disk.img")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	return path
}

// allocated returns how much of the medium is on the disk below.
func (m medium) allocated(t testing.TB) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(m.backing, &st))
	return st.Blocks * 512
}

// everywhere runs f on all media, with both engines, direct and buffered.
func everywhere(t *testing.T, size int64, f func(t *testing.T, r *rig)) {
	for name, make := range media() {
		for _, kind := range []EngineKind{URing, Plain} {
			for _, direct := range []DirectMode{DirectAuto, DirectOff} {
				access := map[DirectMode]string{DirectAuto: "auto", DirectOff: "buffered"}[direct]
				t.Run(fmt.Sprintf("%s/%s/%s", name, kind, access), func(t *testing.T) {
					m := make(t, size)
					r := newRig(t, m.path, Options{Direct: direct}, kind, 16)
					r.medium = m
					f(t, r)
				})
			}
		}
	}
}

func newRig(t testing.TB, path string, o Options, kind EngineKind, depth int) *rig {
	t.Helper()
	store, err := Open(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return newRigOn(t, store, path, kind, depth)
}

func newRigOn(t testing.TB, store Store, path string, kind EngineKind, depth int) *rig {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(bell) })
	e, err := store.NewEngine(kind, depth, bell)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return &rig{t: t, store: store, e: e, bell: bell, medium: medium{path: path, backing: path}}
}

// disk returns the disk below what may be emulated blocks.
func (r *rig) disk() *Disk {
	if e, ok := r.store.(*emulated); ok {
		return e.Store.(*Disk)
	}
	return r.store.(*Disk)
}

// do runs the operations together, and returns when all are done.
func (r *rig) do(ios ...*IO) {
	r.t.Helper()
	for _, io := range ios {
		r.e.Start(io)
	}
	left := map[*IO]bool{}
	for _, io := range ios {
		left[io] = true
	}
	for len(left) > 0 {
		done, rung, err := r.e.Wait(true)
		require.NoError(r.t, err)
		require.False(r.t, rung)
		for _, io := range done {
			require.True(r.t, left[io], "each is returned once")
			delete(left, io)
		}
	}
}

// must runs one operation that has to succeed.
func (r *rig) must(io *IO) {
	r.t.Helper()
	r.do(io)
	require.NoError(r.t, io.Err)
}

// outside reads what is on the disk, by other means, from stable storage as far
// as page caches are concerned.
func (r *rig) outside(off int64, n int) []byte {
	r.t.Helper()
	f, err := os.Open(r.path)
	require.NoError(r.t, err)
	defer f.Close()
	b := make([]byte, n)
	_, err = f.ReadAt(b, off)
	require.NoError(r.t, err)
	return b
}

// aligned returns n bytes of memory that starts at a page.
func aligned(t testing.TB, n int) []byte {
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

// noise fills b with bytes of which hardly any are zero.
func noise(b []byte) []byte {
	seed := [32]byte{}
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	rand.NewChaCha8(seed).Read(b)
	return b
}

func vec(bufs ...[]byte) (v []unix.Iovec) {
	for _, b := range bufs {
		v = append(v, unix.Iovec{Base: &b[0], Len: uint64(len(b))})
	}
	return v
}

func transfer(op Op, off int64, bufs ...[]byte) *IO {
	return &IO{Op: op, Offset: off, Length: int64(len(bytes.Join(bufs, nil))), Iov: vec(bufs...)}
}

func logTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
