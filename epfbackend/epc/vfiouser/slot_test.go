package vfiouser

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser/leaktest"
)

func TestSocketFile(t *testing.T) {
	leaktest.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	slot, err := Listen(path, Options{})
	require.NoError(t, err)
	require.Equal(t, path, slot.Path())
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, st.Mode())
	require.NoError(t, slot.Close())
	_, err = os.Stat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, slot.Close(), "twice")
}

func TestBadPaths(t *testing.T) {
	leaktest.Check(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	taken := filepath.Join(dir, "taken")
	live, err := Listen(taken, Options{})
	require.NoError(t, err)
	defer live.Close()
	long := filepath.Join(dir, strings.Repeat("x", 108))

	for _, tc := range []struct {
		path string
		is   error
		says string
	}{
		{long, ErrPathLength, "107 bytes"},
		{filepath.Join(dir, "none", "nowhere", "s"), ErrPath, "create it"},
		{filepath.Join(file, "s"), ErrPath, "not a directory"},
		{file, ErrPath, "no socket"},
		{dir, ErrPath, "no socket"},
		{taken, ErrTaken, "running server"},
	} {
		require.ErrorIs(t, CheckPath(tc.path), tc.is)
		_, err := Listen(tc.path, Options{})
		require.ErrorIs(t, err, tc.is)
		require.ErrorContains(t, err, tc.path)
		require.ErrorContains(t, err, tc.says)
		require.NotContains(t, err.Error(), "\n")
	}
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))
	_, err = os.Stat(taken)
	require.NoError(t, err, "the live server's socket stays")
}

func TestStaleSocketIsReplaced(t *testing.T) {
	leaktest.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	require.NoError(t, CheckPath(path))
	newRigAt(t, path).client(vfiouser.ClientOptions{})
}

func TestDirectoryIsMade(t *testing.T) {
	leaktest.Check(t)
	dir := filepath.Join(t.TempDir(), "new")
	path := filepath.Join(dir, "s")
	require.NoError(t, CheckPath(path))
	require.NoDirExists(t, dir, "only looked")
	slot, err := Listen(path, Options{})
	require.NoError(t, err)
	defer slot.Close()
	st, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|0o700, st.Mode())
}

// A slot that somebody else put at our path meanwhile is not ours to remove.
func TestForeignSocketIsLeftAlone(t *testing.T) {
	leaktest.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	ours, err := Listen(path, Options{})
	require.NoError(t, err)
	require.NoError(t, os.Rename(path, path+"-away"))
	theirs, err := Listen(path, Options{})
	require.NoError(t, err)
	require.NoError(t, ours.Close())
	_, err = os.Stat(path)
	require.NoError(t, err)
	require.NoError(t, theirs.Close())
	_, err = os.Stat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestOneClientAfterTheOther(t *testing.T) {
	r := newRig(t)
	first := r.client(vfiouser.ClientOptions{})
	second := make(chan *vfiouser.Client)
	go func() {
		c, err := vfiouser.Dial(context.Background(), r.path, vfiouser.ClientOptions{})
		assert.NoError(t, err)
		second <- c
	}()
	require.NoError(t, first.WriteRegion(4, 0, []byte{1}))
	select {
	case <-second:
		t.Fatal("two at a time")
	case <-time.After(20 * time.Millisecond):
	}
	require.NoError(t, first.Close())
	c := <-second
	defer c.Close()
	_, err := c.Info()
	require.NoError(t, err)
	require.Equal(t, []string{"Attach", "Detach", "Attach"}, r.fn.seen())
}

// Who only looks whether a server is there does not get the function.
func TestAGlanceIsNoAttachment(t *testing.T) {
	r := newRig(t)
	for range 5 {
		require.ErrorIs(t, CheckPath(r.path), ErrTaken)
	}
	r.client(vfiouser.ClientOptions{})
	require.Equal(t, []string{"Attach"}, r.fn.seen())
}

// While the function detaches, what is in flight still has the client's memory
// and its interrupts; then the client reads an end of file.
func TestPlannedEnd(t *testing.T) {
	r := newRig(t)
	g := &guest{b: make([]byte, 0x2000)}
	c := r.client(vfiouser.ClientOptions{Host: g})
	fd, b := memory(t, 0x1000)
	irq := newFD(t)
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x1000, Size: 0x1000}, -1))
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x2000, Size: 0x1000}, fd))
	require.NoError(t, c.SetIRQs(msix(triggerEventfd, 0, irq)))
	r.fn.set(func() {
		r.fn.onDetach = func(ctl epc.Controller) {
			assert.NoError(t, ctl.Memory().View().WriteAt([]byte("last"), 0x1ffe))
			assert.NoError(t, ctl.RaiseMSIX(0))
		}
	})
	r.stop()
	<-c.Done()
	r.end()
	require.Equal(t, uint64(1), count(irq))
	require.Equal(t, "st", string(b[:2]))
	g.mu.Lock()
	require.Equal(t, "la", string(g.b[0x1ffe:]))
	g.mu.Unlock()
	log := r.fn.seen()
	require.Equal(t, "Detach", log[len(log)-1])
}

// silent is memory that is never there.
type silent chan struct{}

func (s silent) ReadDMA([]byte, uint64) error  { <-s; return nil }
func (s silent) WriteDMA([]byte, uint64) error { <-s; return nil }

// A client that lives, and does not answer, keeps a planned end only for a while.
func TestPlannedEndUnderASilentClient(t *testing.T) {
	r := newRig(t)
	g := make(silent)
	c := r.client(vfiouser.ClientOptions{Host: g})
	defer close(g)
	require.NoError(t, c.MapDMA(vfiouser.DMAMap{Flags: readWrite, Addr: 0x1000, Size: 0x1000}, -1))
	r.fn.set(func() {
		r.fn.onDetach = func(ctl epc.Controller) {
			for range 100 { // each for a second
				assert.Error(t, ctl.Memory().View().WriteAt([]byte("last"), 0x1000))
			}
		}
	})
	r.stop()
	r.end()
}

// Clients that wait for their turn when the slot is closed read an end of file
// like the one that has it.
func TestWaitingClientsAreTurnedAway(t *testing.T) {
	r := newRig(t)
	r.client(vfiouser.ClientOptions{})
	var waiting []net.Conn
	for range 3 {
		c, err := net.Dial("unix", r.path)
		require.NoError(t, err)
		defer c.Close()
		_, err = c.Write([]byte("unread"))
		require.NoError(t, err)
		waiting = append(waiting, c)
	}
	r.stop()
	r.end()
	require.NoError(t, r.slot.Close())
	for _, c := range waiting {
		_, err := c.Read(make([]byte, 1))
		require.Equal(t, io.EOF, err)
	}
}

// session returns the bytes and descriptors of a client's life, one element for
// each message.
func scripted() (messages [][]byte, fds []int) {
	message := func(cmd vfiouser.Command, fd int, payload ...[]byte) {
		b := make([]byte, vfiouser.HeaderSize)
		for _, p := range payload {
			b = append(b, p...)
		}
		vfiouser.Header{ID: 7, Command: cmd, Size: uint32(len(b))}.Put(b)
		messages, fds = append(messages, b), append(fds, fd)
	}
	u32 := func(vs ...uint32) (b []byte) {
		for _, v := range vs {
			b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))
		}
		return b
	}
	message(vfiouser.CmdVersion, -1, u32(0))
	message(vfiouser.CmdDMAMap, 0, u32(32, 3, 0, 0, 0x1000, 0, 0x1000, 0))
	message(vfiouser.CmdDMAMap, -1, u32(32, 1, 0, 0, 0x8000, 0, 0x1000, 0))
	message(vfiouser.CmdGetRegionInfo, -1, u32(32, 0, 4, 0, 0, 0, 0, 0))
	message(vfiouser.CmdRegionRead, -1, u32(0, 0, vfiouser.RegionConfig, 256))
	message(vfiouser.CmdSetIRQs, 1, u32(20, triggerEventfd, 2, 3, 1))
	message(vfiouser.CmdRegionWrite, -1, u32(0, 0, 4, 4, 0x11223344))
	message(vfiouser.CmdReset, -1)
	message(vfiouser.CmdDMAUnmap, -1, u32(24, 0, 0x1000, 0, 0x1000, 0))
	return messages, fds
}

func TestDeathAtEveryByteOfASession(t *testing.T) {
	leaktest.Check(t)
	r := newRigAt(t, filepath.Join(t.TempDir(), "s"))
	ram, _ := memory(t, 0x1000)
	real := []int{ram, newFD(t)}
	messages, fds := scripted()
	live := func() {
		c, err := vfiouser.Dial(context.Background(), r.path, vfiouser.ClientOptions{})
		require.NoError(t, err)
		_, err = c.Info()
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	for last, m := range messages {
		for n := range len(m) + 1 {
			c, err := net.Dial("unix", r.path)
			require.NoError(t, err)
			for i, m := range messages[:last+1] {
				if i == last {
					m = m[:n]
				}
				var oob []byte
				if fds[i] >= 0 && len(m) > 0 {
					oob = unix.UnixRights(real[fds[i]])
				}
				if _, _, err := c.(*net.UnixConn).WriteMsgUnix(m, oob, nil); err != nil {
					require.ErrorIs(t, err, unix.EPIPE)
				}
			}
			require.NoError(t, c.Close())
		}
		live()
	}
}

// FuzzSlot feeds a slot with one client's bytes and descriptors, and requires
// that the next client is served.
func FuzzSlot(f *testing.F) {
	messages, _ := scripted()
	var whole []byte
	for i, m := range messages {
		whole = append(whole, m...)
		f.Add(append(append([]byte(nil), messages[0]...), m...), uint8(i%3))
	}
	f.Add(whole, uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, kind uint8) {
		r := newRig(t)
		ram, _ := memory(t, 0x2000)
		fd := []int{-1, ram, newFD(t)}[kind%3]
		c, err := net.Dial("unix", r.path)
		require.NoError(t, err)
		go io.Copy(io.Discard, c)
		// Each message with the descriptor, as far as they can be told apart.
		for len(b) > 0 {
			n := len(b)
			if n >= vfiouser.HeaderSize {
				n = min(n, max(1, int(vfiouser.ParseHeader(b).Size)))
			}
			var oob []byte
			if fd >= 0 {
				oob = unix.UnixRights(fd)
			}
			if _, _, err := c.(*net.UnixConn).WriteMsgUnix(b[:n], oob, nil); err != nil {
				break
			}
			b = b[n:]
		}
		require.NoError(t, c.(*net.UnixConn).CloseWrite())
		next, err := vfiouser.Dial(context.Background(), r.path, vfiouser.ClientOptions{})
		require.NoError(t, err)
		_, err = next.Info()
		require.NoError(t, err)
		require.NoError(t, next.Close())
		require.NoError(t, c.Close())
	})
}
