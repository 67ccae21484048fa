package lab

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

const masterAndMemory = virtiopci.CommandMemory | virtiopci.CommandBusMaster

// further programs another function than the first: 64 KiB of BAR 0, of which the
// first page is the endpoint's RAM at ram, MSI-X in the last, and a pin.
func (r *rig) further(n int, ram uint64) {
	r.t.Helper()
	at := func(reg uint64) uint64 { return FunctionRegister(n, reg) }
	r.ep.write(registersBAR, at(ConfigRegister(0)), "\x34\x12"+string(rune(n))+"\x00")
	r.ep.write(registersBAR, at(ConfigRegister(0x3d)), "\x01")
	r.setReg64(at(BARRegister(0, BARSizeLo)), 0x10000)
	r.setReg(at(BARRegister(0, BARControl)), BARPresent)
	require.Zero(r.t, r.mapping(func(reg int) uint64 { return at(RangeRegister(0, reg)) }, MapEnable, 0, 0x1000, ram))
	r.setReg(at(RegMSIX), CapPresent|3)
	r.setReg(at(RegMSIXTable), 0x8000)
	r.setReg(at(RegMSIXPBA), 0x9000)
	r.setReg(at(RegFunction), FunctionPresent)
}

// host is the root complex's guest at another function, with the same memory.
func (r *rig) host(n int) *guest {
	r.t.Helper()
	g := *r.rc
	g.connect(r.lab.HostSocket(n))
	return &g
}

func (g *guest) command(v uint16) {
	g.t.Helper()
	require.NoError(g.t, g.WriteRegion(vfiouser.RegionConfig, virtiopci.ConfigCommand, binary.LittleEndian.AppendUint16(nil, v)))
}

func (g *guest) id() uint32 { g.t.Helper(); return g.read32(vfiouser.RegionConfig, 0) }

func TestFunctionsAreFoundAsProgrammed(t *testing.T) {
	s := &slot{calls: make(chan string, 10)}
	r := newRig(t, func(c *Config) { c.Slot = s })
	require.Equal(t, uint32(FunctionPresent), r.reg(RegFunction), "the first is always there")
	require.Zero(t, r.reg(FunctionRegister(1, RegFunction)))
	r.function()
	r.further(1, epRAM+0x20000)
	r.further(3, epRAM+0x30000)
	require.Equal(t, r.reg(RegMSIX), r.reg(FunctionRegister(0, RegMSIX)), "the first is at two places")
	require.Zero(t, r.reg(FunctionRegister(1, RegCaps0)), "what is not a function's is at one")
	r.start()
	require.Equal(t, "plug[0 1 3]", <-s.calls)
	f1, f3 := r.host(1), r.host(3)
	require.Equal(t, uint32(0x56781234), r.rc.id())
	require.Equal(t, uint32(0x00011234), f1.id())
	require.Equal(t, uint32(0x00031234), f3.id())
	for _, g := range []*guest{r.rc, f1, f3} {
		require.Equal(t, "\x80", g.read(vfiouser.RegionConfig, virtiopci.ConfigHeaderType, 1))
	}
	r.setReg(FunctionRegister(1, RegFunction), 0)
	require.NotZero(t, r.reg(FunctionRegister(1, RegFunction)), "the device is fixed while the link is started")

	// Each one's BAR 0 is its own.
	f1.command(virtiopci.CommandMemory)
	f3.command(virtiopci.CommandMemory)
	f1.write(0, 0x10, "one.")
	f3.write(0, 0x10, "tree")
	require.Equal(t, "one.", f1.read(0, 0x10, 4))
	require.Equal(t, "tree", f3.read(0, 0x10, 4)) // which pushes the write ahead
	require.Equal(t, "one.", string(r.ep.at(epRAM + 0x20010)[:4]))
	require.Equal(t, "tree", string(r.ep.at(epRAM + 0x30010)[:4]))
	f3.command(0)
	require.Equal(t, ones32, f3.read32(0, 0x10))
	require.Equal(t, "one.", f1.read(0, 0x10, 4))

	r.setReg(RegControl, 0)
	require.Equal(t, "unplug", <-s.calls)
	for _, g := range []*guest{r.rc, f1, f3} {
		require.Equal(t, ones32, g.id())
	}
	// Without the others, it is a device of one function.
	r.setReg(FunctionRegister(1, RegFunction), 0)
	r.setReg(FunctionRegister(3, RegFunction), 0)
	r.setReg(RegControl, ControlLinkEnable)
	require.Equal(t, "plug[0]", <-s.calls)
	r.rc.connect(r.lab.HostSocket(0))
	require.Equal(t, "\x00", r.rc.read(vfiouser.RegionConfig, virtiopci.ConfigHeaderType, 1))
}

func TestFunctionThatCannotBeIsNotStarted(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	r.further(2, epRAM)
	r.setReg(FunctionRegister(2, RegMSIXTable), 0x10000)
	r.setReg(RegControl, ControlLinkEnable)
	require.Zero(t, r.reg(RegControl))
	r.setReg(FunctionRegister(2, RegFunction), 0)
	r.setReg(RegControl, ControlLinkEnable)
	require.Equal(t, uint32(ControlLinkEnable), r.reg(RegControl), "one that is not there does not matter")
}

// What a function sends obeys the bus-master bit of that function, and of no other.
func TestFunctionsSendForThemselves(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	r.further(1, epRAM+0x20000)
	at := func(reg uint64) uint64 { return FunctionRegister(1, reg) }
	r.setReg(at(RegEventEnable), allEvents)
	r.start()
	f1 := r.host(1)
	r.events()
	c := r.channel(0, 16)
	window := func(n, function int) uint32 {
		return r.mapping(func(reg int) uint64 { return WindowRegister(n, reg) },
			MapEnable|uint32(function)<<functionShift, uint64(n)<<12, 0x1000, rcRAM)
	}
	for n := range 4 {
		require.Zero(t, window(n, n))
	}
	require.Equal(t, uint32(MapNoBAR), window(4, 4), "no such function")
	copy(r.rc.at(rcRAM), "memory of RC")

	// reaches says which of the four functions reaches the RC, by DMA and by a window.
	reaches := func() (dma, windows [4]bool) {
		for n := range 4 {
			status := c.one(uint32(n)<<functionShift, 4, epRAM, rcRAM+0x100)
			require.Contains(t, []uint32{DescDone, DescUnsupported}, status)
			dma[n] = status == DescDone
			windows[n] = r.ep.read(windowBAR, uint64(n)<<12, 4) == "memo"
		}
		return dma, windows
	}
	sends := func(want [4]bool, why string) {
		t.Helper()
		dma, windows := reaches()
		require.Equal(t, want, dma, why)
		require.Equal(t, want, windows, why)
	}
	sends([4]bool{true}, "the first masters the bus")
	f1.command(masterAndMemory)
	require.Equal(t, uint32(EventBusMaster), r.reg(at(RegEvent)))
	require.Zero(t, r.events()&^EventOBError)
	require.Equal(t, uint32(StatusLinkUp|StatusMemory|StatusBusMaster), r.reg(at(RegStatus)))
	require.Equal(t, uint64(1), count(r.irqs[0]))
	sends([4]bool{true, true}, "both do")
	r.enable(virtiopci.CommandMemory)
	sends([4]bool{1: true}, "only the second does")
	require.Equal(t, uint32(DescMalformed), c.one(4<<functionShift, 4, epRAM, rcRAM), "no such function")

	// Interrupts, too.
	f1.write(vfiouser.RegionConfig, 0x9e, "\x00\x80")
	fd := f1.vectors(vfiouser.IRQMSIX, 4)[2]
	raise := func(n int, v uint32) uint32 {
		r.setReg(FunctionRegister(n, RegIRQRaise), v)
		return r.reg(FunctionRegister(n, RegIRQResult))
	}
	require.Zero(t, raise(1, RaiseMSIX|2))
	signalled(t, fd)
	require.Equal(t, uint32(RaiseNotAllowed), raise(0, RaiseMSIX|2), "it does not master the bus")
	require.Equal(t, uint32(RaiseNotAllowed), raise(2, RaiseMSIX|2), "it is not there")
	f1.command(virtiopci.CommandMemory)
	require.Equal(t, uint32(RaiseNotAllowed), raise(1, RaiseMSIX|2))
	f1.command(masterAndMemory)

	r.enable(masterAndMemory)
	require.NoError(t, f1.Reset())
	sends([4]bool{true}, "the second was reset")
	require.Zero(t, r.reg(at(RegStatus))&StatusMSIX)
	f1.command(masterAndMemory)
	r.setReg(at(RegEvent), allEvents)
	require.Zero(t, r.reg(at(RegEvent)))
	require.NoError(t, f1.Close())
	require.Eventually(t, func() bool { return r.reg(at(RegEvent)) == EventBusMaster }, patience, time.Millisecond)
	sends([4]bool{true}, "the second is gone")
	f1 = r.host(1)
	f1.command(masterAndMemory)
	sends([4]bool{true, true}, "and back")
	require.NoError(t, r.rc.Reset())
	require.Zero(t, r.reg(at(RegStatus))&StatusBusMaster, "a reset of the device")
	sends([4]bool{}, "was one of all")
	require.Equal(t, uint32(0x00011234), f1.id())
	require.NoError(t, r.rc.Close())
	require.Eventually(t, func() bool { return r.reg(at(RegStatus)) == 0 }, patience, time.Millisecond, "no link without the first")
}
