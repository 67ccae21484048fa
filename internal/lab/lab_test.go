package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

func TestControllerIdentity(t *testing.T) {
	r := newRig(t, nil)
	require.Equal(t, "\x57\x7e\xc0\x0e", r.ep.read(vfiouser.RegionConfig, 0, 4))
	require.Equal(t, "\x01\x00\x80\x08", r.ep.read(vfiouser.RegionConfig, 8, 4))
	require.Equal(t, uint32(0x3142414c), r.reg(RegID))
	require.Equal(t, uint32(1), r.reg(RegVersion))
	require.Equal(t, uint32(8|64<<8|128<<16), r.reg(RegCaps0))
	require.Equal(t, uint32(12|12<<8|3<<16), r.reg(RegCaps1))
	var both [8]byte
	require.NoError(t, r.ep.ReadRegion(registersBAR, 0, both[:]))
	require.Equal(t, uint64(0x1_3142414c), binary.LittleEndian.Uint64(both[:]), "8 bytes are two of 4")
	// Sizes by the bits that cannot be written.
	for _, c := range []struct {
		off  uint64
		want uint32
	}{{0x10, 0xffff0000}, {0x18, 0xfc00000c}, {0x1c, 0xffffffff}, {0x20, 0xfffff000}, {0x24, 0}} {
		r.ep.write32(vfiouser.RegionConfig, c.off, 0xffffffff)
		require.Equal(t, c.want, r.ep.read32(vfiouser.RegionConfig, c.off), "%#x", c.off)
	}
}

// capabilities returns the chain that the RC sees, as offset → ID.
func (r *rig) capabilities() (chain []int, ids map[int]byte) {
	ids = map[int]byte{}
	for at := int(r.rc.read(vfiouser.RegionConfig, 0x34, 1)[0]); at != 0 && len(chain) < 48; {
		head := r.rc.read(vfiouser.RegionConfig, uint64(at), 2)
		chain, ids[at] = append(chain, at), head[0]
		at = int(head[1])
	}
	return chain, ids
}

func TestRCFindsWhatTheEndpointProgrammed(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	r.poke(0xa8, "\x09\x00\x10\x01vendor specific.")
	r.poke(0x100, "\x0b\x00\x01\x00")
	r.setReg(RegCapNext, 0xa8)
	// What is the controller's cannot be written.
	r.poke(0x04, "\xff\xff\xff\xff")
	r.poke(0x10, "\xff\xff\xff\xff")
	r.poke(0x34, "\xff")
	r.poke(0x40, "\xff\xff")
	r.start()
	require.Equal(t, "\x34\x12\x78\x56", r.rc.read(vfiouser.RegionConfig, 0, 4))
	require.Equal(t, "\x07\x02\x00\xff", r.rc.read(vfiouser.RegionConfig, 8, 4))
	require.Equal(t, uint32(0x00100006), r.rc.read32(vfiouser.RegionConfig, 4))
	require.Equal(t, "\x0b\x00\x01\x00", r.rc.read(vfiouser.RegionConfig, 0x100, 4))
	chain, ids := r.capabilities()
	require.Equal(t, []int{0x40, 0x48, 0x60, 0x9c, 0xa8}, chain)
	require.Equal(t, map[int]byte{0x40: 1, 0x48: 5, 0x60: 0x10, 0x9c: 0x11, 0xa8: 9}, ids)
	require.Equal(t, "vendor specific.", r.rc.read(vfiouser.RegionConfig, 0xac, 16))
	require.Equal(t, virtiopci.MSIXCap{Vectors: 16, TableBAR: 2, PBABAR: 2, PBAOffset: 0x8000},
		virtiopci.DecodeMSIXCap([]byte(r.rc.read(vfiouser.RegionConfig, 0x9c, 12))))
	require.Equal(t, uint16(0x0186), binary.LittleEndian.Uint16([]byte(r.rc.read(vfiouser.RegionConfig, 0x4a, 2))),
		"eight vectors, 64 bits, masks")

	for n, size := range map[int]uint64{0: 0x4000, 1: 0, 2: 0x10000, 3: 0} {
		v, err := r.rc.Region(n)
		require.NoError(t, err)
		require.Equal(t, size, v.Size, "BAR %d", n)
		closeValid(v.FD)
	}
	r.rc.write32(vfiouser.RegionConfig, 0x10, 0xffffffff)
	require.Equal(t, uint32(0xffffc000), r.rc.read32(vfiouser.RegionConfig, 0x10))
	r.rc.write32(vfiouser.RegionConfig, 0x10, 0xe0000000)
	r.rc.write32(vfiouser.RegionConfig, 0x18, 0xd0000000)
	r.rc.write32(vfiouser.RegionConfig, 0x1c, 0x7)
	require.Equal(t, uint32(0xd000000c), r.rc.read32(vfiouser.RegionConfig, 0x18))
	require.Equal(t, uint32(0xe0000000), r.reg(BARRegister(0, BARAddrLo)))
	require.Equal(t, uint32(0xd0000000), r.reg(BARRegister(2, BARAddrLo)))
	require.Equal(t, uint32(0x7), r.reg(BARRegister(2, BARAddrHi)))
	for index, n := range map[int]uint32{vfiouser.IRQINTx: 1, vfiouser.IRQMSI: 8, vfiouser.IRQMSIX: 16} {
		irq, err := r.rc.IRQ(index)
		require.NoError(t, err)
		require.Equal(t, n, irq.Count)
	}
	// The function is fixed while the link is started.
	r.setReg(RegMSIX, 0)
	r.bar(0, 0x8000, 0)
	require.Equal(t, uint32(CapPresent|15), r.reg(RegMSIX))
	require.Equal(t, uint32(0x4000), r.reg(BARRegister(0, BARSizeLo)))
}

func TestCapabilitiesThatAreNotThere(t *testing.T) {
	r := newRig(t, nil)
	r.start()
	chain, _ := r.capabilities()
	require.Equal(t, []int{0x40, 0x60}, chain)
	irq, err := r.rc.IRQ(vfiouser.IRQINTx)
	require.NoError(t, err)
	require.Zero(t, irq.Count)
}

func TestLinkDoesNotStartWithNonsense(t *testing.T) {
	for name, program := range map[string]func(r *rig){
		"a size that is no power of two": func(r *rig) { r.bar(1, 0x3000, 0) },
		"a small BAR":                    func(r *rig) { r.bar(1, 0x800, 0) },
		"a huge BAR":                     func(r *rig) { r.bar(1, 2<<30, 0) },
		"64 bits in the last BAR":        func(r *rig) { r.bar(5, 0x1000, BAR64Bit) },
		"64 bits over another BAR":       func(r *rig) { r.bar(0, 0x1000, BAR64Bit); r.bar(1, 0x1000, 0) },
		"a table outside its BAR":        func(r *rig) { r.bar(0, 0x1000, 0); r.setReg(RegMSIX, CapPresent|256) },
		"a table without a BAR":          func(r *rig) { r.setReg(RegMSIX, CapPresent); r.setReg(RegMSIXTable, 7) },
		"capabilities over others":       func(r *rig) { r.setReg(RegCapNext, 0x40) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			program(r)
			r.setReg(RegControl, ControlLinkEnable)
			require.Zero(t, r.reg(RegControl))
		})
	}
}

func TestLinkEvents(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	r.setReg(RegEventEnable, allEvents)
	require.Zero(t, r.reg(RegStatus))
	r.setReg(RegControl, ControlLinkEnable)
	require.Zero(t, r.events())
	r.rc.connect(r.lab.cfg.HostSocket)
	signalled(t, r.irqs[0])
	require.Equal(t, uint32(EventLinkUp), r.events())
	require.Equal(t, uint32(StatusLinkUp), r.reg(RegStatus))

	r.enable(virtiopci.CommandMemory)
	require.Zero(t, r.events())
	r.enable(virtiopci.CommandMemory | virtiopci.CommandBusMaster)
	require.Equal(t, uint64(1), count(r.irqs[0]))
	require.Equal(t, uint32(EventBusMaster), r.events())
	require.Equal(t, uint32(StatusLinkUp|StatusMemory|StatusBusMaster), r.reg(RegStatus))
	r.rc.write(vfiouser.RegionConfig, 0x9e, "\x0f\x80")
	require.Equal(t, uint32(StatusMSIX), r.reg(RegStatus)&StatusMSIX)
	require.Equal(t, uint32(EventIRQEnable), r.events())
	require.Equal(t, uint64(1), count(r.irqs[0]))

	require.NoError(t, r.rc.Reset())
	require.Equal(t, uint32(EventLinkDown|EventPERSTAssert|EventPERSTDeassert|EventLinkUp), r.events())
	require.NotZero(t, count(r.irqs[0]))
	require.Equal(t, uint32(StatusLinkUp), r.reg(RegStatus), "what the RC wrote is gone")
	require.Equal(t, "\x34\x12\x78\x56", r.rc.read(vfiouser.RegionConfig, 0, 4), "what the endpoint wrote is not")
	require.Equal(t, uint32(ControlLinkEnable), r.reg(RegControl))

	r.lab.DropLink(true)
	require.Equal(t, uint32(EventLinkDown), r.events())
	require.Equal(t, uint32(0xffffffff), r.rc.read32(vfiouser.RegionConfig, 0))
	r.lab.DropLink(false)
	require.Equal(t, uint32(EventLinkUp), r.events())
	require.Equal(t, uint32(0x56781234), r.rc.read32(vfiouser.RegionConfig, 0))

	require.NoError(t, r.rc.Close())
	require.Eventually(t, func() bool { return r.reg(RegStatus)&StatusLinkUp == 0 }, patience, time.Millisecond)
	require.Equal(t, uint32(EventLinkDown), r.events())
	r.rc.connect(r.lab.cfg.HostSocket)
	require.Equal(t, uint32(EventLinkUp), r.events())

	// An event that was there before it is enabled.
	r.setReg(RegEventEnable, 0)
	r.enable(virtiopci.CommandBusMaster)
	require.Zero(t, r.reg(RegEventEnable))
	count(r.irqs[0])
	r.setReg(RegEventEnable, EventBusMaster)
	require.Equal(t, uint32(EventBusMaster), r.events())
	require.Equal(t, uint64(1), count(r.irqs[0]))
}

func TestStoppedLinkIsGoneUntilPluggedInAgain(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	r.start()
	r.setReg(RegControl, 0)
	require.Zero(t, r.reg(RegStatus)&StatusLinkUp)
	require.Equal(t, uint32(0xffffffff), r.rc.read32(vfiouser.RegionConfig, 0))
	require.Equal(t, uint32(0xffffffff), r.rc.read32(0, 0))
	r.bar(0, 0x8000, 0)
	r.setReg(RegControl, ControlLinkEnable)
	require.Equal(t, uint32(0xffffffff), r.rc.read32(vfiouser.RegionConfig, 0), "it knows another function")
	require.NoError(t, r.rc.Reset())
	require.Zero(t, r.reg(RegStatus)&StatusLinkUp)
	// It may stay: the one that comes now has the link.
	before := r.rc.Client
	r.rc.connect(r.lab.cfg.HostSocket)
	require.Equal(t, uint32(StatusLinkUp), r.reg(RegStatus))
	var b [4]byte
	require.NoError(t, before.WriteRegion(vfiouser.RegionConfig, 4, []byte{6, 0}))
	require.NoError(t, before.ReadRegion(0, 0, b[:]))
	require.Equal(t, "\xff\xff\xff\xff", string(b[:]))
	require.NoError(t, before.Reset())
	require.Equal(t, uint32(StatusLinkUp), r.reg(RegStatus))
	require.NoError(t, before.Close())
	require.Equal(t, uint32(StatusLinkUp), r.reg(RegStatus))
	v, err := r.rc.Region(0)
	require.NoError(t, err)
	closeValid(v.FD)
	require.Equal(t, uint64(0x8000), v.Size)
}

func TestEndpointComesBack(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	r.start()
	v, err := r.rc.Region(0)
	require.NoError(t, err)
	defer closeValid(v.FD)
	m, err := v.MapArea(0)
	require.NoError(t, err)
	defer m.Close()
	copy(r.ep.at(epRAM+0x10000), "alive")
	require.Equal(t, "alive", string(m.Bytes()[:5]))

	require.NoError(t, r.ep.Close())
	require.NoError(t, r.lab.AwaitLink(t.Context(), false))
	require.Equal(t, uint32(0xffffffff), r.rc.read32(vfiouser.RegionConfig, 0))
	require.Equal(t, uint32(0xffffffff), r.rc.read32(0, 0))
	require.Eventually(t, func() bool { return m.Bytes()[0] == 0xff && m.Bytes()[0xfff] == 0xff }, patience, time.Millisecond,
		"memory that is mapped reads ones, too")
	r.rc.write32(0, 0, 1)
	r.rc.write32(0, 0x1040, 1)
	require.NoError(t, r.rc.Close())

	r.newEP()
	require.Zero(t, r.reg(RegControl))
	r.function()
	r.start()
	require.Equal(t, uint32(StatusLinkUp), r.reg(RegStatus)&StatusLinkUp)
}

func TestResetOfTheController(t *testing.T) {
	for name, reset := range map[string]func(r *rig){
		"by its register": func(r *rig) { r.setReg(RegControl, ControlReset) },
		"by its bus":      func(r *rig) { require.NoError(r.t, r.ep.Reset()) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.function()
			require.Zero(t, r.window(0, 0, 0x1000, rcRAM))
			r.start()
			r.setReg(ChannelRegister(1, DMASize), 8)
			reset(r)
			for _, off := range []uint64{
				RegControl, RegStatus, RegEvent, RegMSI, RegMSIX, BARRegister(0, BARControl), BARRegister(0, BARSizeLo),
				RangeRegister(0, MapControl), RangeRegister(0, MapAddrLo), WindowRegister(0, MapControl),
				ChannelRegister(1, DMASize), ConfigRegister(0),
			} {
				require.Zero(t, r.reg(off), "%#x", off)
			}
			require.Equal(t, uint32(0xffffffff), r.rc.read32(vfiouser.RegionConfig, 0))
			require.Equal(t, uint32(0xffffffff), r.ep.read32(windowBAR, 0))
		})
	}
}

// slot is a slot of a machine that plugs in as told.
type slot struct{ calls chan string }

func (s *slot) Plug(_ context.Context, functions []int) error {
	s.calls <- fmt.Sprint("plug", functions)
	return nil
}

func (s *slot) Unplug(context.Context) error {
	s.calls <- "unplug"
	return nil
}

func TestSlotFollowsTheLink(t *testing.T) {
	s := &slot{calls: make(chan string, 10)}
	r := newRig(t, func(c *Config) { c.Slot = s })
	r.function()
	r.setReg(RegControl, ControlLinkEnable)
	require.Equal(t, "plug[0]", <-s.calls)
	r.setReg(RegControl, 0)
	require.Equal(t, "unplug", <-s.calls)
	r.setReg(RegControl, ControlLinkEnable)
	require.Equal(t, "plug[0]", <-s.calls)
	require.NoError(t, r.ep.Close())
	require.Equal(t, "unplug", <-s.calls)
	require.Empty(t, s.calls)
}
