package vfiouser

import (
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser/leaktest"
)

// probe is a function of plain registers that remembers what it was told. It
// checks that the calls come one at a time and in an order that makes sense.
type probe struct {
	t    testing.TB
	busy atomic.Bool // a call is under way

	mu       sync.Mutex
	log      []string // Attach, Pause, Resume, Reset, Detach
	bar4     [0x4000]byte
	ctl      epc.Controller
	paused   bool
	hung     bool // what is in flight does not end: Pause and Reset fail
	onDetach func(c epc.Controller)
}

func (p *probe) Describe() epc.Description {
	d := epc.Description{
		Identity: epc.Identity{Vendor: 0x1af4, Device: 0x1042, Revision: 1, Class: 0x018000, InterruptPin: 1},
		MSIX:     epc.MSIX{Vectors: 40, TableBAR: 1, PBABAR: 2},
	}
	d.BARs[1].Size, d.BARs[2].Size, d.BARs[4].Size = 0x1000, 0x1000, 0x4000
	d.Capabilities = []epc.Capability{{
		Data:     []byte{9, 0, 20, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		Writable: []byte{0, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0},
		Window: func(b []byte) (int, uint64, int) {
			return int(b[4]), uint64(binary.LittleEndian.Uint32(b[8:])), int(binary.LittleEndian.Uint32(b[12:]))
		},
	}}
	return d
}

// call enters a method that the controller must call alone.
func (p *probe) call(name string) (leave func()) {
	if !p.busy.CompareAndSwap(false, true) {
		p.t.Errorf("%s: not alone", name)
	}
	p.mu.Lock()
	if p.ctl == nil && name != "Attach" {
		p.t.Errorf("%s: not attached", name)
	}
	return func() {
		p.mu.Unlock()
		p.busy.Store(false)
	}
}

func (p *probe) note(name string) { p.log = append(p.log, name) }

func (p *probe) ReadBAR(bar int, off uint64, b []byte) {
	defer p.call("ReadBAR")()
	require.Equal(p.t, 4, bar)
	copy(b, p.bar4[off:])
}

func (p *probe) WriteBAR(bar int, off uint64, b []byte) {
	defer p.call("WriteBAR")()
	require.Equal(p.t, 4, bar)
	copy(p.bar4[off:], b)
}

func (p *probe) Attach(c epc.Controller) {
	defer p.call("Attach")()
	p.ctl = c
	p.note("Attach")
}

func (p *probe) Pause(ctx context.Context) error {
	defer p.call("Pause")()
	p.note("Pause")
	if p.hung {
		<-ctx.Done()
		return fmt.Errorf("hung: %w", ctx.Err())
	}
	p.paused = true
	return nil
}

func (p *probe) Resume() {
	defer p.call("Resume")()
	p.note("Resume")
	p.paused = false
}

func (p *probe) HostGone(context.Context) error { panic("the host never is") }

func (p *probe) Reset(ctx context.Context) error {
	defer p.call("Reset")()
	p.note("Reset")
	if p.hung {
		<-ctx.Done()
		return fmt.Errorf("hung: %w", ctx.Err())
	}
	clear(p.bar4[:])
	return nil
}

func (p *probe) Detach() error {
	leave := p.call("Detach")
	p.note("Detach")
	ctl, f := p.ctl, p.onDetach
	leave()
	if f != nil {
		f(ctl)
	}
	leave = p.call("Detach")
	defer leave()
	p.ctl = nil
	return nil
}

// seen returns the calls so far, and forgets them.
func (p *probe) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	log := p.log
	p.log = nil
	return log
}

func (p *probe) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *probe) controller() epc.Controller {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ctl
}

// rig is a served slot.
type rig struct {
	t    testing.TB
	fn   *probe
	slot *Slot
	path string
	stop context.CancelFunc
	done chan error
}

// newRig serves a probe. The goroutine of a served slot counts as there before.
func newRig(t testing.TB) *rig {
	leaktest.Check(t)
	return newRigAt(t, filepath.Join(t.TempDir(), "s"))
}

func newRigAt(t testing.TB, path string) *rig {
	slot, err := Listen(path, Options{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{t: t, fn: &probe{t: t}, slot: slot, path: path, stop: cancel, done: make(chan error, 1)}
	go func() { r.done <- slot.Serve(ctx, r.fn) }()
	t.Cleanup(func() {
		cancel()
		r.end()
		require.NoError(t, slot.Close())
	})
	return r
}

// end waits for the end of Serve.
func (r *rig) end() {
	select {
	case err := <-r.done:
		require.NoError(r.t, err)
		r.done <- nil
	case <-time.After(10 * time.Second):
		r.t.Fatal("slot is still served")
	}
}

func (r *rig) client(opts vfiouser.ClientOptions) *vfiouser.Client {
	r.t.Helper()
	c, err := vfiouser.Dial(context.Background(), r.path, opts)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { c.Close() })
	require.Eventually(r.t, func() bool { return r.fn.controller() != nil }, 5*time.Second, time.Millisecond)
	return c
}

// detached waits until the function has no controller.
func (r *rig) detached() {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return r.fn.controller() == nil }, 5*time.Second, time.Millisecond)
}

func (r *rig) config32(c *vfiouser.Client, off uint64) uint32 {
	var b [4]byte
	require.NoError(r.t, c.ReadRegion(vfiouser.RegionConfig, off, b[:]))
	return binary.LittleEndian.Uint32(b[:])
}

func (r *rig) setConfig32(c *vfiouser.Client, off uint64, v uint32) {
	require.NoError(r.t, c.WriteRegion(vfiouser.RegionConfig, off, binary.LittleEndian.AppendUint32(nil, v)))
}

// memory returns guest memory of n bytes.
func memory(t testing.TB, n int) (fd int, b []byte) {
	fd, m, err := shm.NewMemory("guest", n)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close(); unix.Close(fd) })
	return fd, m.Bytes()
}

func newFD(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// count empties an eventfd and returns how often it was signalled.
func count(fd int) uint64 {
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(b[:])
}
