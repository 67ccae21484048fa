package lab

import (
	"context"
	"encoding/binary"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser/leaktest"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

const (
	epRAM     = 0x40000000 // as on QEMU's virt board
	epRAMSize = 8 << 20
	its       = 0x08090040 // GITS_TRANSLATER there
	itsPage   = 0x08090000

	rcRAM     = 0x100000000
	rcRAMSize = 8 << 20
	rcMSI     = 0xfee00000 // of x86: not memory
)

// patience is how long is waited for what comes at once on a machine that is not busy.
const patience = 3 * time.Minute

// access is one DMA message that a guest got.
type access struct {
	addr  uint64
	data  string
	write bool
}

// mmio is what a guest answers messages with: devices that keep what was last
// written to them.
type mmio struct {
	mu     sync.Mutex
	bases  []uint64 // pages where something is
	values map[uint64][]byte
	log    []access
	block  chan struct{} // when set, answers wait until it is closed
}

func (m *mmio) there(addr uint64) bool {
	for _, b := range m.bases {
		if addr&^0xfff == b {
			return true
		}
	}
	return false
}

func (m *mmio) wait() {
	m.mu.Lock()
	block := m.block
	m.mu.Unlock()
	if block != nil {
		<-block
	}
}

func (m *mmio) ReadDMA(p []byte, addr uint64) error {
	m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.there(addr) {
		return syscall.EFAULT
	}
	m.log = append(m.log, access{addr, string(p), false})
	copy(p, m.values[addr])
	return nil
}

func (m *mmio) WriteDMA(p []byte, addr uint64) error {
	m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.there(addr) {
		return syscall.EFAULT
	}
	m.log = append(m.log, access{addr, string(p), true})
	m.values[addr] = append([]byte(nil), p...)
	return nil
}

// writes returns the writes so far and forgets all.
func (m *mmio) writes() (list []access) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.log {
		if a.write {
			list = append(list, a)
		}
	}
	m.log = nil
	return list
}

// guest is the monitor of one guest, as far as the lab sees it.
type guest struct {
	t testing.TB
	*vfiouser.Client
	base uint64
	fd   int
	ram  *shm.Mapping
	mmio *mmio
}

func newGuest(t testing.TB, base uint64, size int, bases ...uint64) *guest {
	t.Helper()
	g := &guest{t: t, base: base, mmio: &mmio{bases: bases, values: map[uint64][]byte{}}}
	var err error
	g.fd, g.ram, err = shm.NewMemory("guest", size)
	require.NoError(t, err)
	t.Cleanup(func() { g.ram.Close(); unix.Close(g.fd) })
	return g
}

// connect does what QEMU does to realize the device.
func (g *guest) connect(path string) {
	g.t.Helper()
	c, err := vfiouser.Dial(context.Background(), path, vfiouser.ClientOptions{Host: g.mmio})
	require.NoError(g.t, err)
	g.Client = c
	g.t.Cleanup(func() { c.Close() })
	require.NoError(g.t, c.MapDMA(vfiouser.DMAMap{
		Flags: vfiouser.DMAMapRead | vfiouser.DMAMapWrite, Addr: g.base, Size: uint64(len(g.ram.Bytes())),
	}, g.fd))
	require.NoError(g.t, c.Reset())
}

func (g *guest) at(addr uint64) []byte { return g.ram.Bytes()[addr-g.base:] }

func (g *guest) read32(region int, off uint64) uint32 {
	g.t.Helper()
	var b [4]byte
	require.NoError(g.t, g.ReadRegion(region, off, b[:]))
	return binary.LittleEndian.Uint32(b[:])
}

func (g *guest) write32(region int, off uint64, v uint32) {
	g.t.Helper()
	g.write(region, off, string(binary.LittleEndian.AppendUint32(nil, v)))
}

func (g *guest) read(region int, off uint64, n int) string {
	g.t.Helper()
	b := make([]byte, n)
	require.NoError(g.t, g.ReadRegion(region, off, b))
	return string(b)
}

// write writes as a bus does: to memory it is posted.
func (g *guest) write(region int, off uint64, data string) {
	g.t.Helper()
	if region == vfiouser.RegionConfig {
		require.NoError(g.t, g.WriteRegion(region, off, []byte(data)))
		return
	}
	require.NoError(g.t, g.PostRegion(region, off, []byte(data)))
}

// vectors sets up eventfds for the first n interrupts of an index.
func (g *guest) vectors(index, n int) []int {
	g.t.Helper()
	fds := make([]int, n)
	for i := range fds {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		require.NoError(g.t, err)
		g.t.Cleanup(func() { unix.Close(fd) })
		fds[i] = fd
	}
	require.NoError(g.t, g.SetIRQs(vfiouser.IRQSet{
		Flags: vfiouser.IRQDataEventfd | vfiouser.IRQActionTrigger, Index: uint32(index), Count: uint32(n), FDs: fds,
	}))
	return fds
}

// count empties an eventfd and returns how often it was signalled.
func count(fd int) uint64 {
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		return 0
	}
	return binary.NativeEndian.Uint64(b[:])
}

// signalled waits until an eventfd is signalled.
func signalled(t testing.TB, fd int) {
	t.Helper()
	require.Eventually(t, func() bool { return count(fd) > 0 }, patience, time.Millisecond)
}

// rig is a lab with two guests that are played by the test.
type rig struct {
	t    testing.TB
	lab  *Lab
	ep   *guest
	rc   *guest
	irqs []int // of the controller
	stop func()
}

func newRig(t testing.TB, edit func(*Config)) *rig {
	t.Helper()
	if _, fuzzing := t.(*testing.F); !fuzzing { // the fuzzer has goroutines of its own
		leaktest.Check(t)
	}
	dir := t.TempDir()
	cfg := Config{EndpointSocket: filepath.Join(dir, "ep"), HostSocket: filepath.Join(dir, "rc")}
	if edit != nil {
		edit(&cfg)
	}
	l, err := New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- l.Serve(ctx) }()
	r := &rig{t: t, lab: l}
	r.stop = sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-served)
		require.NoError(t, l.Close())
	})
	t.Cleanup(r.stop)
	r.newEP()
	r.rc = newGuest(t, rcRAM, rcRAMSize, rcMSI)
	return r
}

func (r *rig) newEP() {
	r.ep = newGuest(r.t, epRAM, epRAMSize, itsPage)
	r.ep.connect(r.lab.cfg.EndpointSocket)
	r.irqs = r.ep.vectors(vfiouser.IRQMSIX, numVectors)
}

// reg and setReg access the controller's registers.
func (r *rig) reg(off uint64) uint32       { r.t.Helper(); return r.ep.read32(registersBAR, off) }
func (r *rig) setReg(off uint64, v uint32) { r.t.Helper(); r.ep.write32(registersBAR, off, v) }

func (r *rig) setReg64(off uint64, v uint64) {
	r.t.Helper()
	r.setReg(off, uint32(v))
	r.setReg(off+4, uint32(v>>32))
}

func (r *rig) poke(off int, data string) {
	r.t.Helper()
	r.ep.write(registersBAR, ConfigRegister(off), data)
}

func (r *rig) bar(n int, size uint64, flags uint32) {
	r.t.Helper()
	r.setReg64(BARRegister(n, BARSizeLo), size)
	r.setReg(BARRegister(n, BARControl), BARPresent|flags)
}

// mapping sets up a range or window at a register block and returns the result.
func (r *rig) mapping(at func(int) uint64, control uint32, off, size, addr uint64) uint32 {
	r.t.Helper()
	r.setReg64(at(MapOffsetLo), off)
	r.setReg64(at(MapSizeLo), size)
	r.setReg64(at(MapAddrLo), addr)
	r.setReg(at(MapControl), control)
	return r.reg(at(MapResult))
}

func (r *rig) rangeTo(n, bar int, off, size, addr uint64) uint32 {
	r.t.Helper()
	return r.mapping(func(reg int) uint64 { return RangeRegister(n, reg) }, MapEnable|uint32(bar)<<4, off, size, addr)
}

func (r *rig) window(n int, off, size, addr uint64) uint32 {
	r.t.Helper()
	return r.mapping(func(reg int) uint64 { return WindowRegister(n, reg) }, MapEnable, off, size, addr)
}

// function programs what most tests need: BAR 0 of two ranges of RAM with a page
// of the ITS between them, BAR 2 for MSI-X.
func (r *rig) function() {
	r.t.Helper()
	r.poke(0, "\x34\x12\x78\x56")
	r.poke(8, "\x07\x02\x00\xff")
	r.poke(0x3d, "\x01")
	r.bar(0, 0x4000, 0)
	require.Zero(r.t, r.rangeTo(0, 0, 0, 0x1000, epRAM+0x10000))
	require.Zero(r.t, r.rangeTo(1, 0, 0x1000, 0x1000, itsPage))
	require.Zero(r.t, r.rangeTo(2, 0, 0x2000, 0x1000, epRAM+0x12000))
	r.bar(2, 0x10000, BAR64Bit|BARPrefetchable)
	r.setReg(RegMSI, CapPresent|3)
	r.setReg(RegMSIX, CapPresent|15)
	r.setReg(RegMSIXTable, 2)
	r.setReg(RegMSIXPBA, 0x8000|2)
}

// start starts the link and lets the RC find the function and enable it.
func (r *rig) start() {
	r.t.Helper()
	r.setReg(RegControl, ControlLinkEnable)
	require.Equal(r.t, uint32(ControlLinkEnable), r.reg(RegControl))
	r.rc.connect(r.lab.cfg.HostSocket)
	r.enable(virtiopci.CommandMemory | virtiopci.CommandBusMaster)
}

// enable writes the function's command register.
func (r *rig) enable(command uint16) {
	r.t.Helper()
	require.NoError(r.t, r.rc.WriteRegion(vfiouser.RegionConfig, virtiopci.ConfigCommand,
		binary.LittleEndian.AppendUint16(nil, command)))
}

// events reads and clears the events.
func (r *rig) events() uint32 {
	r.t.Helper()
	e := r.reg(RegEvent)
	r.setReg(RegEvent, e)
	return e
}
