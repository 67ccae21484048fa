package vfiouser

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/vring"
)

const readWrite = vfiouser.DMAMapRead | vfiouser.DMAMapWrite

// guestMappings counts our mappings of guest memory; a test's own is one of
// them.
func guestMappings(t testing.TB) int {
	maps, err := os.ReadFile("/proc/self/maps")
	require.NoError(t, err)
	return strings.Count(string(maps), "memfd:guest")
}

func TestMappedMemoryIsTheGuests(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	fd, b := memory(t, 0x4000)
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Offset: 0x1000, Addr: 0x100000, Size: 0x2000}, fd))
	view := r.fn.controller().Memory().View()
	require.NoError(t, view.WriteAt([]byte("hello"), 0x100ffe))
	require.Equal(t, "hello", string(b[0x1000+0xffe:][:5]))
	lent, err := view.Lend(0x101000, 0x5000, vring.Write)
	require.NoError(t, err)
	require.Len(t, lent, 0x1000)
	require.ErrorIs(t, view.ReadAt(make([]byte, 2), 0x101fff), vring.ErrUnmapped)
	require.Equal(t, 2, guestMappings(t))

	require.NoError(t, c.UnmapDMA(vfiouser.DMAUnmap{Addr: 0x100000, Size: 0x2000}))
	require.ErrorIs(t, view.ReadAt(make([]byte, 1), 0x100000), vring.ErrUnmapped)
	require.Equal(t, 1, guestMappings(t), "unmapped before it was answered")
}

func TestReadOnlyMemory(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	fd, _ := memory(t, 0x1000)
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: vfiouser.DMAMapRead, Addr: 0x1000, Size: 0x1000}, fd))
	view := r.fn.controller().Memory().View()
	require.NoError(t, view.ReadAt(make([]byte, 4), 0x1000))
	require.ErrorIs(t, view.WriteAt(make([]byte, 4), 0x1000), vring.ErrUnmapped)

	// A descriptor that cannot be written to.
	ro, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(ro)
	require.ErrorIs(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x8000, Size: 0x1000}, ro), syscall.EACCES)
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: vfiouser.DMAMapRead, Addr: 0x8000, Size: 0x1000}, ro))
}

// guest answers DMA messages from plain bytes.
type guest struct {
	mu sync.Mutex
	b  []byte
}

func (g *guest) ReadDMA(p []byte, addr uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	copy(p, g.b[addr:])
	return nil
}

func (g *guest) WriteDMA(p []byte, addr uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	copy(g.b[addr:], p)
	return nil
}

func TestMemoryWithoutDescriptorIsReachedByMessages(t *testing.T) {
	for _, layout := range []vfiouser.DMALayout{vfiouser.DMALayoutSpec, vfiouser.DMALayout32} {
		r := newRig(t)
		g := &guest{b: make([]byte, 0x10000)}
		c := r.client(vfiouser.ClientOptions{Host: g, Layout: layout})
		fd, mapped := memory(t, 0x1000)
		require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x4000, Size: 0x1000}, -1))
		require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x5000, Size: 0x1000}, fd))
		view := r.fn.controller().Memory().View()
		require.NoError(t, view.WriteAt([]byte("across"), 0x4ffd))
		g.mu.Lock()
		require.Equal(t, "acr", string(g.b[0x4ffd:0x5000]))
		g.mu.Unlock()
		require.Equal(t, "oss", string(mapped[:3]))
		b := make([]byte, 6)
		require.NoError(t, view.ReadAt(b, 0x4ffd))
		require.Equal(t, "across", string(b))
		require.ErrorIs(t, view.ReadAt(b, 0x3fff), vring.ErrUnmapped)
	}
}

func TestMapRefused(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	fd, _ := memory(t, 0x4000)
	at := func(offset, addr, size uint64) vfiouser.DMAMap {
		return vfiouser.DMAMap{Flags: readWrite, Offset: offset, Addr: addr, Size: size}
	}
	require.NoError(t, c.MapDMA(at(0, 0x10000, 0x4000), fd))
	for _, m := range []vfiouser.DMAMap{
		at(0, 0x10000, 0x4000), at(0, 0x13000, 0x1000), at(0, 0xf000, 0x2000), at(0, 0xf000, 0x4000), at(0, 0x10000, 0x1000),
	} {
		require.ErrorIs(t, c.MapDMA(m, fd), syscall.EEXIST)
		require.ErrorIs(t, c.MapDMA(m, -1), syscall.EEXIST)
	}
	for _, m := range []vfiouser.DMAMap{
		at(0x800, 0x20000, 0x1000),            // not a page
		at(0, 0x20800, 0x1000),                // not a page
		at(0, 0x20000, 0x1800),                // not a page
		at(0x4000, 0x20000, 0x1000),           // behind the end of the file
		at(0x1000, 0x20000, 0x4000),           // partly behind it
		at(1<<63, 0x20000, 0x1000),            // no offset
		at(1<<63-0x1000, 0x20000, 0x1000),     // no such file
		at(0, 0x20000, 1<<62),                 // no such address space
		at(^uint64(0)-0xfff, 0x20000, 0x2000), // wraps
	} {
		require.ErrorIs(t, c.MapDMA(m, fd), syscall.EINVAL, "%+v", m)
	}
	pipe := make([]int, 2)
	require.NoError(t, unix.Pipe2(pipe, unix.O_CLOEXEC))
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	require.ErrorIs(t, c.MapDMA(at(0, 0x20000, 0x1000), pipe[0]), syscall.EINVAL, "no memory")
	require.Equal(t, 2, guestMappings(t))
	require.Len(t, r.fn.controller().Memory().Regions(), 1)
}

func TestUnmap(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	fd, _ := memory(t, 0x4000)
	for i := range uint64(4) {
		require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Offset: i << 12, Addr: 0x10000 + i<<13, Size: 0x1000}, fd))
	}
	regions := func() int { return len(r.fn.controller().Memory().Regions()) }
	unmap := func(addr, size uint64) error { return c.UnmapDMA(vfiouser.DMAUnmap{Addr: addr, Size: size}) }
	require.ErrorIs(t, unmap(0x10000, 0x800), syscall.EINVAL, "a part of a region")
	require.ErrorIs(t, unmap(0x10800, 0x2800), syscall.EINVAL, "one, and a part of another")
	require.ErrorIs(t, unmap(0x11000, 0x1000), syscall.ENOENT, "between two")
	require.Equal(t, 4, regions())
	require.NoError(t, unmap(0x10000, 0x3000), "two, exactly")
	require.Equal(t, 2, regions())
	require.NoError(t, c.UnmapDMA(vfiouser.DMAUnmap{Flags: vfiouser.DMAUnmapAll}))
	require.Zero(t, regions())
	require.NoError(t, c.UnmapDMA(vfiouser.DMAUnmap{Flags: vfiouser.DMAUnmapAll}), "nothing is all, too")
	require.Equal(t, 1, guestMappings(t))
}

func TestRegionAtTheEndOfTheAddressSpace(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	last := ^uint64(0xfff)
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: last, Size: 0x1000}, -1))
	require.ErrorIs(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: last, Size: 0x1000}, -1), syscall.EEXIST)
	require.NoError(t, c.UnmapDMA(vfiouser.DMAUnmap{Addr: last, Size: 0x1000}))
}

// A burst of changes pauses the function once, and it goes on soon after.
func TestBurstOfChanges(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	fd, _ := memory(t, 0x1000)
	burst := func() {
		for i := range uint64(20) {
			require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: i << 12, Size: 0x1000}, fd))
		}
		for i := range uint64(20) {
			require.NoError(t, c.UnmapDMA(vfiouser.DMAUnmap{Addr: i << 12, Size: 0x1000}))
		}
	}
	balanced := func(log []string) (pauses int) {
		paused := false
		for _, call := range log {
			switch call {
			case "Pause":
				pauses++
				paused = true
			case "Resume":
				require.True(t, paused)
				paused = false
			}
		}
		require.False(t, paused)
		return pauses
	}
	resumed := func() bool { r.fn.mu.Lock(); defer r.fn.mu.Unlock(); return !r.fn.paused }
	r.fn.seen()
	burst()
	require.Eventually(t, resumed, time.Second, time.Millisecond, "goes on by itself")
	log := r.fn.seen()
	balanced(log)
	require.Less(t, strings.Count(strings.Join(log, " "), "Resume"), 5, "not for each change: %v", log)

	burst()
	require.NoError(t, c.ReadRegion(4, 0, make([]byte, 1)))
	require.True(t, resumed(), "goes on before anything else is done")
	balanced(r.fn.seen())
}

// A change that what is in flight does not make room for is answered in time,
// takes the region off the map, and keeps its memory.
func TestUnmapUnderAHungDisk(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	fd, b := memory(t, 0x1000)
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x1000, Size: 0x1000}, fd))
	view := r.fn.controller().Memory().View()
	lent, err := view.Lend(0x1000, 0x1000, vring.Write)
	require.NoError(t, err)
	require.NoError(t, c.ReadRegion(4, 0, make([]byte, 1)))

	r.fn.set(func() { r.fn.hung = true })
	start := time.Now()
	require.NoError(t, c.UnmapDMA(vfiouser.DMAUnmap{Addr: 0x1000, Size: 0x1000}))
	require.Less(t, time.Since(start), 4*time.Second)
	require.ErrorIs(t, view.ReadAt(make([]byte, 1), 0x1000), vring.ErrUnmapped)
	lent[5] = 9
	require.Equal(t, byte(9), b[5], "what is in flight still has its memory")
	require.Equal(t, 2, guestMappings(t))
	require.NoError(t, c.ReadRegion(4, 0, make([]byte, 1)))

	// The address may be used anew meanwhile.
	fd2, _ := memory(t, 0x1000)
	r.fn.set(func() { r.fn.hung = false })
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x1000, Size: 0x1000}, fd2))
	require.Eventually(t, func() bool { return guestMappings(t) == 3 }, time.Second, time.Millisecond,
		"released with the next pause that succeeds")
}

func TestHungDiskAndDeathOfTheClient(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	fd, _ := memory(t, 0x1000)
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x1000, Size: 0x1000}, fd))
	require.NoError(t, c.ReadRegion(4, 0, make([]byte, 1)))
	finish := make(chan struct{})
	r.fn.set(func() {
		r.fn.hung = true
		r.fn.onDetach = func(epc.Controller) {
			<-finish
			assert.Equal(t, 2, guestMappings(t), "until it is detached")
		}
	})
	require.NoError(t, c.UnmapDMA(vfiouser.DMAUnmap{Flags: vfiouser.DMAUnmapAll}))
	require.NoError(t, c.Close())
	time.Sleep(20 * time.Millisecond)
	close(finish)
	r.detached()
	require.Eventually(t, func() bool { return guestMappings(t) == 1 }, 5*time.Second, time.Millisecond)
}

func TestTooManyRegions(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	const n = 8
	s := r.fn.controller().(*session)
	s.mu.Lock()
	require.Equal(t, c.Peer().MaxDMAMaps, s.host.limit)
	s.host.limit = n
	s.mu.Unlock()
	fd, _ := memory(t, 0x1000)
	page := func(i uint64) vfiouser.DMAMap {
		return vfiouser.DMAMap{Flags: readWrite, Addr: i << 12, Size: 0x1000}
	}
	for i := range uint64(n) {
		require.NoError(t, c.MapDMA(page(i), fd))
	}
	require.ErrorIs(t, c.MapDMA(page(n), -1), syscall.ENOSPC)
	require.NoError(t, c.UnmapDMA(vfiouser.DMAUnmap{Addr: 0x1000, Size: 0x1000}))
	require.NoError(t, c.MapDMA(page(n), -1))

	// What a hung disk keeps mapped counts, too.
	r.fn.set(func() { r.fn.hung = true })
	require.NoError(t, c.ReadRegion(4, 0, make([]byte, 1)))
	require.NoError(t, c.UnmapDMA(vfiouser.DMAUnmap{Flags: vfiouser.DMAUnmapAll}))
	require.NoError(t, c.MapDMA(page(0), fd))
	require.ErrorIs(t, c.MapDMA(page(1), fd), syscall.ENOSPC)
}

func TestMemoryFileOnDisk(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	path := filepath.Join(t.TempDir(), "ram")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte{5}, 0x2000), 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x1000, Size: 0x2000}, int(f.Fd())))
	b := make([]byte, 1)
	require.NoError(t, r.fn.controller().Memory().View().ReadAt(b, 0x2fff))
	require.Equal(t, byte(5), b[0])
}

// Who serves a filesystem could leave a page fault of ours without an answer for ever.
func TestMemoryFileOfAFilesystemThatMayNotAnswer(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	dir := t.TempDir()
	for _, sub := range []string{"lower", "upper", "work"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o700))
	}
	at := blktest.Mount(t, "overlay", "overlay", fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir))
	path := filepath.Join(at, "ram")
	require.NoError(t, os.WriteFile(path, make([]byte, 0x1000), 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	require.ErrorIs(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x1000, Size: 0x1000}, int(f.Fd())), syscall.EINVAL)
	require.Empty(t, r.fn.controller().Memory().Regions())
}
