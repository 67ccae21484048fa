package vfiouser

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser/leaktest"
)

// toy is a device of plain memory that remembers what it was told.
type toy struct {
	mu     sync.Mutex
	memory [NumRegions][]byte
	maps   []DMAMap
	unmaps []DMAUnmap
	irqs   []IRQSet
	resets int

	fail    error                  // what every call returns
	onWrite func(off uint64)       // called by WriteRegion
	onRead  func(off uint64) error // called by ReadRegion
}

// see returns the toy after all that it was told so far. The race detector does
// not know that a reply comes after its command.
func (d *toy) see() *toy {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d
}

func (d *toy) setFail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

func (d *toy) ReadRegion(region int, off uint64, p []byte) error {
	if d.onRead != nil {
		if err := d.onRead(off); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.memory[region][off:])
	return d.fail
}

func (d *toy) WriteRegion(region int, off uint64, p []byte) error {
	if d.onWrite != nil {
		d.onWrite(off)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.memory[region][off:], p)
	return d.fail
}

func (d *toy) MapDMA(m DMAMap, fd int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if fd >= 0 {
		defer unix.Close(fd)
	}
	d.maps = append(d.maps, m)
	return d.fail
}

func (d *toy) UnmapDMA(m DMAUnmap) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unmaps = append(d.unmaps, m)
	return d.fail
}

func (d *toy) SetIRQs(s IRQSet) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	closeFDs(s.FDs)
	s.Bools = append([]byte(nil), s.Bools...)
	d.irqs = append(d.irqs, s)
	return d.fail
}

func (d *toy) Reset() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resets++
	return d.fail
}

// toyBARSize is the size of the toy's BAR 0.
const toyBARSize = 64 << 10

func newToy() (*toy, *Layout) {
	d, l := &toy{}, &Layout{}
	add := func(i int, size uint64, flags uint32) {
		l.Regions[i] = Region{Size: size, Flags: flags, FD: -1}
		d.memory[i] = make([]byte, size)
	}
	add(RegionBAR0, toyBARSize, RegionRead|RegionWrite)
	add(1, 4096, RegionRead)
	add(2, 2<<20, RegionRead|RegionWrite)
	add(RegionConfig, 4096, RegionRead|RegionWrite)
	l.IRQs[IRQINTx] = IRQ{IRQEventfd | IRQMaskable | IRQAutomasked, 1}
	l.IRQs[IRQMSIX] = IRQ{IRQEventfd, 40}
	return d, l
}

// sockets returns a connected pair.
func sockets(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	ends := [2]*net.UnixConn{}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// rig is a server with a toy, and a socket to it.
type rig struct {
	t      testing.TB
	dev    *toy
	layout *Layout
	conn   *Conn         // valid after ready
	ready  chan struct{} // closed after the handshake
	served chan error    // what Accept or Serve returned
	stop   context.CancelFunc
	sock   *net.UnixConn // the client's end
}

func newRig(t testing.TB, opts Options) *rig {
	leaktest.Check(t)
	dev, layout := newToy()
	r := &rig{t: t, dev: dev, layout: layout, ready: make(chan struct{}), served: make(chan error, 1)}
	ours, theirs := sockets(t)
	r.sock = theirs
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := Accept(ctx, ours, opts)
		if err != nil {
			r.served <- err
			return
		}
		r.conn = conn
		close(r.ready)
		r.served <- conn.Serve(ctx, layout, dev)
		_ = conn.Close()
	}()
	t.Cleanup(func() {
		theirs.Close()
		cancel()
		<-done
	})
	return r
}

// client attaches a Client.
func (r *rig) client(opts ClientOptions) *Client {
	c, err := NewClient(r.sock, opts)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { c.Close() })
	<-r.ready
	return c
}

// raw negotiates the version and leaves the socket to the test.
func (r *rig) raw() *net.UnixConn {
	r.send(message1(CmdVersion, 0, putVersion(1<<16)))
	h, _ := r.receive()
	require.Equal(r.t, FlagReply, h.Flags)
	<-r.ready
	return r.sock
}

// message1 returns the bytes of a message with identifier 1.
func message1(cmd Command, flags uint32, payload []byte) []byte {
	b := make([]byte, HeaderSize, HeaderSize+len(payload))
	Header{ID: 1, Command: cmd, Size: uint32(HeaderSize + len(payload)), Flags: flags}.Put(b)
	return append(b, payload...)
}

// encoded returns what put writes into n bytes.
func encoded(n int, put func([]byte)) []byte {
	b := make([]byte, n)
	put(b)
	return b
}

func (r *rig) send(b []byte) {
	_, err := r.sock.Write(b)
	require.NoError(r.t, err)
}

func (r *rig) sendFDs(b []byte, fds ...int) {
	_, _, err := r.sock.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
	require.NoError(r.t, err)
}

func (r *rig) receive() (Header, []byte) {
	r.t.Helper()
	require.NoError(r.t, r.sock.SetReadDeadline(time.Now().Add(5*time.Second)))
	var head [HeaderSize]byte
	_, err := io.ReadFull(r.sock, head[:])
	require.NoError(r.t, err)
	h := ParseHeader(head[:])
	payload := make([]byte, h.Size-HeaderSize)
	_, err = io.ReadFull(r.sock, payload)
	require.NoError(r.t, err)
	return h, payload
}

// refused sends a command and requires that it is refused with errno, and that
// the connection serves on.
func (r *rig) refused(errno syscall.Errno, b []byte, fds ...int) {
	r.t.Helper()
	if len(fds) > 0 {
		r.sendFDs(b, fds...)
	} else {
		r.send(b)
	}
	h, payload := r.receive()
	require.Equal(r.t, FlagReply|FlagError, h.Flags)
	require.Equal(r.t, errno, syscall.Errno(h.Errno))
	require.Empty(r.t, payload)
	r.alive()
}

// alive requires that commands are still answered.
func (r *rig) alive() {
	r.t.Helper()
	r.send(message1(CmdGetInfo, 0, encoded(deviceInfoSize, DeviceInfo{}.put)))
	h, _ := r.receive()
	require.Equal(r.t, CmdGetInfo, h.Command)
	require.Equal(r.t, FlagReply, h.Flags)
}

// dropped requires that the server ends the connection, and says why.
func (r *rig) dropped() error {
	r.t.Helper()
	select {
	case err := <-r.served:
		return err
	case <-time.After(5 * time.Second):
		r.t.Fatal("connection is still served")
		return nil
	}
}

func eventfd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func u32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
