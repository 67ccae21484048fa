package lab

import (
	"encoding/binary"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

const ones32 = uint32(0xffffffff)

// Both kinds of BAR lead to the same places.
func eachKindOfBAR(t *testing.T, test func(t *testing.T, r *rig)) {
	for name, trap := range map[string]uint8{"mapped": 0, "trapped": 0x3f} {
		t.Run(name, func(t *testing.T) { test(t, newRig(t, func(c *Config) { c.TrapBARs = trap })) })
	}
}

func TestInboundRanges(t *testing.T) {
	eachKindOfBAR(t, func(t *testing.T, r *rig) {
		r.function()
		r.start()
		copy(r.ep.at(epRAM+0x10ffc), "abcd")
		copy(r.ep.at(epRAM+0x12000), "efgh")
		require.Equal(t, "abcd", r.rc.read(0, 0xffc, 4))
		require.Equal(t, "efgh", r.rc.read(0, 0x2000, 4))
		r.rc.write(0, 0x2004, "ijkl")
		require.Equal(t, "efghijkl", r.rc.read(0, 0x2000, 8))
		require.Equal(t, "ijkl", string(r.ep.at(epRAM + 0x12004)[:4]))
		require.Equal(t, ones32, r.rc.read32(0, 0x3000), "no range")
		r.rc.write32(0, 0x3000, 0)
		require.Equal(t, ones32, r.rc.read32(2, 0), "a BAR without ranges")
		require.Equal(t, "efghijkl"+strings.Repeat("\xff", 8), r.rc.read(0, 0x2000, 8)+r.rc.read(0, 0x3000, 8))

		r.enable(virtiopci.CommandBusMaster)
		require.Equal(t, ones32, r.rc.read32(0, 0x2000), "memory space is off")
		r.rc.write32(0, 0x2000, 0)
		r.enable(virtiopci.CommandMemory)
		require.Equal(t, "efgh", r.rc.read(0, 0x2000, 4))
	})
}

func TestRangesThatAreRAMAreMapped(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	// Elsewhere in the file than in the BAR: cannot be mapped beside the others.
	require.Zero(t, r.rangeTo(3, 0, 0x3000, 0x1000, epRAM+0x20000))
	r.start()
	v, err := r.rc.Region(0)
	require.NoError(t, err)
	defer closeValid(v.FD)
	require.Equal(t, []vfiouser.Area{{Offset: 0, Size: 0x1000}, {Offset: 0x2000, Size: 0x1000}}, v.Areas)
	for i, addr := range []uint64{epRAM + 0x10000, epRAM + 0x12000} {
		m, err := v.MapArea(i)
		require.NoError(t, err)
		copy(m.Bytes(), fmt.Sprintf("area %d", i))
		require.Equal(t, fmt.Sprintf("area %d", i), string(r.ep.at(addr)[:6]))
		require.NoError(t, m.Close())
	}
	copy(r.ep.at(epRAM+0x20000), "away")
	require.Equal(t, "away", r.rc.read(0, 0x3000, 4), "trapped, and right")

	require.Equal(t, uint32(MapBusy), r.rangeTo(0, 0, 0, 0x1000, epRAM+0x30000), "it is mapped")
	require.Zero(t, r.rangeTo(0, 0, 0, 0x1000, epRAM+0x10000), "no change")
	r.setReg(RangeRegister(0, MapControl), 0)
	require.Equal(t, uint32(MapBusy), r.reg(RangeRegister(0, MapResult)))
	require.Zero(t, r.rangeTo(3, 0, 0x3000, 0x1000, epRAM+0x21000), "it is trapped")
	copy(r.ep.at(epRAM+0x21000), "here")
	require.Equal(t, "here", r.rc.read(0, 0x3000, 4))
}

func TestPageOfTheMSIXTableStaysMapped(t *testing.T) {
	r := newRig(t, nil)
	r.bar(0, 0x4000, 0)
	require.Zero(t, r.rangeTo(0, 0, 0, 0x4000, epRAM))
	r.setReg(RegMSIX, CapPresent)
	r.setReg(RegMSIXTable, 0x1080)
	r.start()
	v, err := r.rc.Region(0)
	require.NoError(t, err)
	closeValid(v.FD)
	require.Equal(t, []vfiouser.Area{{Offset: 0, Size: 0x1000}, {Offset: 0x1000, Size: 0x3000}}, v.Areas)
}

func TestRangesMoveWhileTheLinkIsUp(t *testing.T) {
	r := newRig(t, func(c *Config) { c.TrapBARs = 1 })
	r.function()
	r.start()
	copy(r.ep.at(epRAM+0x20000), "new")
	require.Zero(t, r.rangeTo(0, 0, 0, 0x1000, epRAM+0x20000))
	require.Equal(t, "new", r.rc.read(0, 0, 3))
	r.setReg(RangeRegister(0, MapControl), 0)
	require.Zero(t, r.reg(RangeRegister(0, MapResult)))
	require.Equal(t, ones32, r.rc.read32(0, 0))
	require.Zero(t, r.rangeTo(0, 0, 0, 0x1000, itsPage), "the doorbell, now")
	r.rc.write(0, 0x40, "\x05\x00")
	require.Eventually(t, func() bool { return len(r.ep.mmio.writes()) == 1 }, 5*time.Second, time.Millisecond)
}

func TestMappingsThatAreRefused(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	for name, c := range map[string]struct {
		bar             int
		off, size, addr uint64
		want            uint32
	}{
		"no such BAR":       {1, 0, 0x1000, epRAM, MapNoBAR},
		"no BAR at all":     {7, 0, 0x1000, epRAM, MapNoBAR},
		"behind its end":    {0, 0x4000, 0x1000, epRAM, MapOutside},
		"over its end":      {0, 0x3000, 0x2000, epRAM, MapOutside},
		"far away":          {0, 1 << 63, 0x1000, epRAM, MapOutside},
		"over another":      {0, 0x2000, 0x2000, epRAM, MapOverlaps},
		"an odd offset":     {0, 0x3004, 0x1000, epRAM, MapMisfit},
		"an odd size":       {0, 0x3000, 0x10, epRAM, MapMisfit},
		"an odd address":    {0, 0x3000, 0x1000, epRAM + 8, MapMisfit},
		"no size":           {0, 0x3000, 0, epRAM, MapMisfit},
		"around the corner": {2, 0, 0x2000, 0xfffffffffffff000, MapMisfit},
	} {
		require.Equal(t, c.want, r.rangeTo(9, c.bar, c.off, c.size, c.addr), name)
		require.Zero(t, r.reg(RangeRegister(9, MapControl))&MapEnable, name)
	}
	require.Zero(t, r.rangeTo(9, 0, 0x3000, 0x1000, epRAM))
	require.Equal(t, uint32(MapOverlaps), r.rangeTo(9, 0, 0x2000, 0x1000, epRAM))
	require.Equal(t, uint32(MapEnable), r.reg(RangeRegister(9, MapControl))&MapEnable, "what was there stays")

	require.Equal(t, uint32(MapOutside), r.window(0, 64<<20, 0x1000, rcRAM))
	require.Equal(t, uint32(MapMisfit), r.window(0, 0x800, 0x1000, rcRAM))
	require.Zero(t, r.window(0, 0x1000, 0x1000, rcRAM))
	require.Equal(t, uint32(MapOverlaps), r.window(1, 0, 0x2000, rcRAM))
}

// The doorbell: the RC's write reaches the ITS as it is, and after all that the
// RC wrote before.
func TestWriteToTheITS(t *testing.T) {
	r := newRig(t, func(c *Config) { c.TrapBARs = 1 })
	r.function()
	r.start()
	r.rc.write(0, 0x1040, "\x07\x00")
	r.rc.write(0, 0x1040, "\x01\x02\x03\x04")
	r.rc.write(0, 0x1044, "\x09")
	r.rc.write(0, 0x1048, "12345678")
	var got []access
	require.Eventually(t, func() bool { got = append(got, r.ep.mmio.writes()...); return len(got) == 4 }, 5*time.Second, time.Millisecond)
	require.Equal(t, []access{
		{its, "\x07\x00", true}, {its, "\x01\x02\x03\x04", true}, {its + 4, "\x09", true}, {its + 8, "12345678", true},
	}, got)
	require.Equal(t, "12345678", r.rc.read(0, 0x1048, 8), "a read is forwarded, too")
	require.Equal(t, ones32, r.rc.read32(2, 0))

	// While the endpoint does not answer, the RC does not wait, and nothing
	// overtakes.
	block := make(chan struct{})
	r.ep.mmio.mu.Lock()
	r.ep.mmio.block = block
	r.ep.mmio.mu.Unlock()
	begin := time.Now()
	require.NoError(t, r.rc.WriteRegion(0, 0x1040, []byte{1, 0}))
	require.NoError(t, r.rc.WriteRegion(0, 0x2000, []byte("after")))
	require.Less(t, time.Since(begin), 500*time.Millisecond)
	require.NotEqual(t, "after", string(r.ep.at(epRAM + 0x12000)[:5]), "a posted write does not overtake another")
	time.AfterFunc(50*time.Millisecond, func() { close(block) })
	require.Equal(t, "after", r.rc.read(0, 0x2000, 5), "a read pushes them ahead")
	require.Equal(t, []access{{its, "\x01\x00", true}}, r.ep.mmio.writes())
}

func TestOutboundWindows(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	require.Zero(t, r.window(0, 0, 0x2000, rcRAM+0x5000))
	require.Zero(t, r.window(1, 0x10000, 0x1000, rcMSI))
	require.Zero(t, r.window(2, 0x11000, 0x1000, rcRAM+rcRAMSize))
	require.Equal(t, ones32, r.ep.read32(windowBAR, 0), "the link is down")
	r.start()
	copy(r.rc.at(rcRAM+0x5ff8), "over the pages..")
	require.Equal(t, "over the pages..", r.ep.read(windowBAR, 0xff8, 8)+r.ep.read(windowBAR, 0x1000, 8))
	r.ep.write(windowBAR, 0x1004, "written")
	require.Equal(t, "written", r.ep.read(windowBAR, 0x1004, 7))
	require.Equal(t, "written", string(r.rc.at(rcRAM + 0x6004)[:7]))
	r.ep.write(windowBAR, 0x10000, "\x41\x00\x00\x00")
	require.Equal(t, uint32(0x41), r.ep.read32(windowBAR, 0x10000), "what is no memory is reached by messages")
	require.Equal(t, []access{{rcMSI, "\x41\x00\x00\x00", true}}, r.rc.mmio.writes())

	r.events()
	failed := r.reg(RegOBErrors)
	require.Equal(t, ones32, r.ep.read32(windowBAR, 0x11010), "nothing is there")
	require.Equal(t, uint32(EventOBError), r.events())
	require.Equal(t, failed+1, r.reg(RegOBErrors))
	require.Equal(t, uint64(rcRAM+rcRAMSize+0x10), uint64(r.reg(RegOBErrorLo))|uint64(r.reg(RegOBErrorHi))<<32)
	require.Equal(t, ones32, r.ep.read32(windowBAR, 0x20000), "no window")

	r.enable(virtiopci.CommandMemory)
	require.Equal(t, ones32, r.ep.read32(windowBAR, 0), "no bus master")
	r.ep.write(windowBAR, 0x1004, "dropped")
	require.Equal(t, ones32, r.ep.read32(windowBAR, 0))
	require.Equal(t, "written", string(r.rc.at(rcRAM + 0x6004)[:7]))
	r.enable(virtiopci.CommandMemory | virtiopci.CommandBusMaster)
	require.Equal(t, "written", r.ep.read(windowBAR, 0x1004, 7))

	r.setReg(WindowRegister(0, MapControl), 0)
	require.Equal(t, ones32, r.ep.read32(windowBAR, 0))
	require.Zero(t, r.window(0, 0, 0x1000, rcRAM+0x6000), "another place")
	require.Equal(t, "written", r.ep.read(windowBAR, 4, 7))

	require.NoError(t, r.rc.UnmapDMA(vfiouser.DMAUnmap{Addr: rcRAM, Size: rcRAMSize}))
	require.Equal(t, ones32, r.ep.read32(windowBAR, 0), "the RC's memory is gone")
}

func (r *rig) raise(v uint32) uint32 {
	r.t.Helper()
	r.setReg(RegIRQRaise, v)
	return r.reg(RegIRQResult)
}

func TestMSIX(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	require.Equal(t, uint32(RaiseNotAllowed), r.raise(RaiseMSIX), "no link")
	r.start()
	require.Equal(t, uint32(RaiseNoVector), r.raise(RaiseMSIX), "not enabled")
	r.rc.write(vfiouser.RegionConfig, 0x9e, "\x00\x80")
	require.Equal(t, uint32(RaiseNoVector), r.raise(RaiseMSIX), "not set up")
	fds := r.rc.vectors(vfiouser.IRQMSIX, 3)
	require.Equal(t, uint32(RaiseSent), r.raise(RaiseMSIX|2))
	require.Equal(t, uint32(RaiseSent), r.raise(RaiseMSIX))
	require.Equal(t, [3]uint64{1, 0, 1}, [3]uint64{count(fds[0]), count(fds[1]), count(fds[2])})
	require.Equal(t, uint32(RaiseNoVector), r.raise(RaiseMSIX|3))
	require.Equal(t, uint32(RaiseNoVector), r.raise(RaiseMSIX|0xffff))
	require.Equal(t, uint32(RaiseNoVector), r.raise(RaiseMSI), "MSI is off")
	r.enable(virtiopci.CommandMemory)
	require.Equal(t, uint32(RaiseNotAllowed), r.raise(RaiseMSIX), "no bus master")
	require.Zero(t, count(fds[0]))
}

func TestMSI(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	r.start()
	fds := r.rc.vectors(vfiouser.IRQMSI, 8)
	require.Equal(t, uint32(RaiseNoVector), r.raise(RaiseMSI))
	r.rc.write(vfiouser.RegionConfig, 0x4a, "\x21\x00")
	require.Equal(t, uint32(StatusMSI), r.reg(RegStatus)&StatusMSI)
	require.Equal(t, uint32(0x01a7), r.reg(ConfigRegister(0x48))>>16, "four vectors are wanted")
	require.Equal(t, uint32(RaiseSent), r.raise(RaiseMSI|3))
	require.Equal(t, uint64(1), count(fds[3]))
	require.Equal(t, uint32(RaiseNoVector), r.raise(RaiseMSI|4))
}

func TestINTx(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	r.start()
	pin := r.rc.vectors(vfiouser.IRQINTx, 1)[0]
	unmask := vfiouser.IRQSet{Flags: vfiouser.IRQDataNone | vfiouser.IRQActionUnmask, Index: vfiouser.IRQINTx, Count: 1}
	require.Equal(t, uint32(RaiseSent), r.raise(RaiseINTxAssert))
	require.Equal(t, uint64(1), count(pin))
	require.Equal(t, uint32(8), r.rc.read32(vfiouser.RegionConfig, 4)>>16&8, "interrupt status")
	require.NoError(t, r.rc.SetIRQs(unmask))
	require.Equal(t, uint64(1), count(pin), "a level")
	require.Equal(t, uint32(RaiseSent), r.raise(RaiseINTxDeassert))
	require.NoError(t, r.rc.SetIRQs(unmask))
	require.Zero(t, count(pin))
	require.Zero(t, r.rc.read32(vfiouser.RegionConfig, 4)>>16&8)
	r.enable(virtiopci.CommandINTxDisable)
	r.raise(RaiseINTxAssert)
	require.Zero(t, count(pin))
	require.Equal(t, uint32(8), r.rc.read32(vfiouser.RegionConfig, 4)>>16&8)
	r.enable(0)
	require.Equal(t, uint64(1), count(pin))
}

// channelRig is a channel with a ring.
type channelRig struct {
	*rig
	n    int
	ring uint64
	size uint32
	head uint32
}

func (r *rig) channel(n int, size uint32) *channelRig {
	r.t.Helper()
	c := &channelRig{rig: r, n: n, ring: epRAM + 0x100000 + uint64(n)*0x20000, size: size}
	r.setReg64(ChannelRegister(n, DMARingLo), c.ring)
	r.setReg(ChannelRegister(n, DMASize), size)
	r.setReg(ChannelRegister(n, DMAControl), DMAEnable)
	require.Equal(r.t, uint32(DMARunning), r.reg(ChannelRegister(n, DMAStatus)))
	return c
}

// put writes a descriptor and does not tell.
func (c *channelRig) put(flags, length uint32, local, remote uint64) {
	d := c.ep.at(c.ring + uint64(c.head%c.size)*DescSize)
	binary.LittleEndian.PutUint32(d[DescFlags:], flags)
	binary.LittleEndian.PutUint32(d[DescLength:], length)
	binary.LittleEndian.PutUint64(d[DescLocal:], local)
	binary.LittleEndian.PutUint64(d[DescRemote:], remote)
	binary.LittleEndian.PutUint32(d[DescStatus:], 0)
	c.head++
}

func (c *channelRig) ringBell() { c.t.Helper(); c.setReg(ChannelRegister(c.n, DMAHead), c.head) }

// status waits for a descriptor's status.
func (c *channelRig) status(i uint32) uint32 {
	c.t.Helper()
	require.Eventually(c.t, func() bool { return c.reg(ChannelRegister(c.n, DMATail))-i-1 < 1<<31 }, 10*time.Second, time.Millisecond)
	return binary.LittleEndian.Uint32(c.ep.at(c.ring + uint64(i%c.size)*DescSize)[DescStatus:])
}

// one runs one descriptor and returns its status.
func (c *channelRig) one(flags, length uint32, local, remote uint64) uint32 {
	c.t.Helper()
	c.put(flags, length, local, remote)
	c.ringBell()
	return c.status(c.head - 1)
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return p
}

func TestDMABothWays(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	r.start()
	c, d := r.channel(0, 4), r.channel(7, 4)
	data := pattern(1<<20+3, 1)
	copy(r.ep.at(epRAM+0x300001), data)
	require.Equal(t, uint32(DescDone), c.one(DescInterrupt, uint32(len(data)), epRAM+0x300001, rcRAM+0x1233))
	require.Equal(t, data, r.rc.at(rcRAM + 0x1233)[:len(data)])
	signalled(t, r.irqs[1])
	require.Equal(t, uint32(DescDone), d.one(DescFromRC, uint32(len(data)), epRAM+0x500000, rcRAM+0x1233))
	require.Equal(t, data, r.ep.at(epRAM + 0x500000)[:len(data)])
	require.Zero(t, count(r.irqs[8]), "no interrupt was asked for")

	// Inside the RC's memory, either way.
	require.Equal(t, uint32(DescDone), d.one(DescInsideRC, uint32(len(data)), rcRAM+0x1233, rcRAM+0x300000))
	require.Equal(t, data, r.rc.at(rcRAM + 0x300000)[:len(data)])
	require.Equal(t, uint32(DescDone), d.one(DescInsideRC|DescFromRC, 4, rcRAM+0x10, rcRAM+0x300001))
	require.Equal(t, data[1:5], r.rc.at(rcRAM + 0x10)[:4])

	// A list, many times around the ring.
	for i := range 50 {
		r.ep.at(epRAM + 0x600000)[0] = byte(i)
		c.put(0, 1, epRAM+0x600000, rcRAM+uint64(i))
		c.put(DescFromRC, 1, epRAM+0x601000, rcRAM+uint64(i))
		c.put(DescInterrupt, 16, epRAM+0x601000, rcRAM+0x10000)
		c.ringBell()
		signalled(t, r.irqs[1])
		require.Equal(t, uint32(DescDone), c.status(c.head-1))
		require.Equal(t, byte(i), r.rc.at(rcRAM + 0x10000)[0])
	}
	require.Zero(t, r.reg(ChannelRegister(0, DMAStatus))&DMABusy)
	s := r.lab.Stats()
	require.Equal(t, uint64(154), s.DMATransfers)
	require.Equal(t, uint64(3*len(data)+4+50*18), s.DMABytes)
	require.Equal(t, uint64(51), s.DMAInterrupts)
}

func TestDMAErrors(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	c := r.channel(2, 16)
	require.Equal(t, uint32(DescLinkDown), c.one(0, 4, epRAM, rcRAM))
	signalled(t, r.irqs[3])
	r.start()
	for name, x := range map[string]struct {
		flags, length uint32
		local, remote uint64
		want          uint32
	}{
		"no length":           {0, 0, epRAM, rcRAM, DescMalformed},
		"flags of the future": {8, 4, epRAM, rcRAM, DescMalformed},
		"around the corner":   {0, 8, epRAM, 0xfffffffffffffffc, DescMalformed},
		"nothing there":       {0, 4, epRAM, rcRAM + rcRAMSize, DescUnsupported},
		"nothing to read":     {DescFromRC, 4, epRAM, 0x1000, DescUnsupported},
		"over the end":        {DescFromRC, 8, epRAM, rcRAM + rcRAMSize - 4, DescUnsupported},
		"nothing beside":      {DescInsideRC, 4, epRAM, rcRAM, DescUnsupported},
		"nothing here":        {0, 4, epRAM + epRAMSize, rcRAM, DescLocalFault},
		"nowhere to write":    {DescFromRC, 4, 0x1000, rcRAM, DescLocalFault},
	} {
		require.Equal(t, x.want, c.one(x.flags, x.length, x.local, x.remote), name)
		signalled(t, r.irqs[3])
	}
	require.Equal(t, uint32(DescDone), c.one(0, 4, epRAM, rcRAM), "the channel goes on")
	require.Equal(t, uint32(DescDone), c.one(0, 4, epRAM, rcMSI), "what is no memory is reached by messages")
	require.Equal(t, uint32(DescDone), c.one(DescFromRC, 4, its, rcRAM), "here as well")
	require.Equal(t, []access{{its, string(r.rc.at(rcRAM)[:4]), true}}, r.ep.mmio.writes())

	r.enable(virtiopci.CommandMemory)
	require.Equal(t, uint32(DescUnsupported), c.one(0, 4, epRAM, rcRAM), "no bus master")
	r.enable(virtiopci.CommandMemory | virtiopci.CommandBusMaster)
	r.lab.FailDMA(2)
	require.Equal(t, uint32(DescInjected), c.one(0, 4, epRAM, rcRAM))
	require.Equal(t, uint32(DescInjected), c.one(0, 4, epRAM, rcRAM))
	require.Equal(t, uint32(DescDone), c.one(0, 4, epRAM, rcRAM))
	r.lab.DropLink(true)
	require.Equal(t, uint32(DescLinkDown), c.one(0, 4, epRAM, rcRAM))
}

func TestDMARingsThatCannotBe(t *testing.T) {
	for name, x := range map[string]struct {
		ring uint64
		size uint32
		head uint32
	}{
		"a size that is no power of two": {epRAM, 12, 0},
		"one entry":                      {epRAM, 1, 0},
		"too many":                       {epRAM, 8192, 0},
		"at an odd address":              {epRAM + 8, 8, 0},
		"where nothing is":               {0x1000, 8, 1},
		"too far ahead":                  {epRAM, 8, 9},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.setReg64(ChannelRegister(0, DMARingLo), x.ring)
			r.setReg(ChannelRegister(0, DMASize), x.size)
			r.setReg(ChannelRegister(0, DMAControl), DMAEnable)
			r.setReg(ChannelRegister(0, DMAHead), x.head)
			signalled(t, r.irqs[1])
			require.Equal(t, uint32(DMAHalted), r.reg(ChannelRegister(0, DMAStatus)))
			r.setReg(ChannelRegister(0, DMAControl), 0)
			require.Zero(t, r.reg(ChannelRegister(0, DMAStatus)))
			c := r.channel(0, 4)
			require.Equal(t, uint32(DescLinkDown), c.one(0, 1, epRAM, rcRAM), "it can be used again")
		})
	}
}

func TestStalledDMA(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	r.start()
	c := r.channel(0, 4)
	r.lab.StallDMA(true)
	c.put(DescInterrupt, 4, epRAM, rcRAM)
	c.ringBell()
	time.Sleep(20 * time.Millisecond)
	require.Zero(t, r.reg(ChannelRegister(0, DMATail)))
	r.lab.StallDMA(false)
	signalled(t, r.irqs[1])
	require.Equal(t, uint32(DescDone), c.status(0))

	r.setReg(ChannelRegister(0, DMAControl), DMAEnable|DMAPause)
	c.put(0, 4, epRAM, rcRAM)
	c.ringBell()
	time.Sleep(20 * time.Millisecond)
	require.Equal(t, uint32(1), r.reg(ChannelRegister(0, DMATail)))
	r.setReg(ChannelRegister(0, DMAControl), DMAEnable)
	require.Equal(t, uint32(DescDone), c.status(1))

	// Stalled in the middle of a transfer: it can be stopped, and says so.
	r.rc.mmio.mu.Lock()
	r.rc.mmio.block = make(chan struct{})
	r.rc.mmio.mu.Unlock()
	c.put(0, 0x1000, epRAM, rcMSI)
	c.put(0, 4, epRAM, rcRAM)
	c.ringBell()
	require.Eventually(t, func() bool { return r.reg(ChannelRegister(0, DMAStatus))&DMABusy != 0 }, 5*time.Second, time.Millisecond)
	r.setReg(ChannelRegister(0, DMAControl), 0)
	close(r.rc.mmio.block)
	require.Eventually(t, func() bool { return r.reg(ChannelRegister(0, DMAStatus)) == 0 }, 5*time.Second, time.Millisecond)
	c = r.channel(0, 4)
	require.Equal(t, uint32(DescDone), c.one(0, 4, epRAM, rcRAM))
	r.lab.StallDMA(true)
	c.put(0, 4, epRAM, rcRAM)
	c.ringBell()
	r.setReg(RegControl, ControlReset) // ends, although the channel is stalled
	require.Zero(t, r.reg(ChannelRegister(0, DMAStatus)))
}

// Data that the endpoint sent is there when its interrupt arrives, whichever way
// it went.
func TestWritesArriveBeforeTheInterrupt(t *testing.T) {
	r := newRig(t, nil)
	r.function()
	require.Zero(t, r.window(0, 0, 0x1000, rcRAM))
	r.start()
	r.rc.write(vfiouser.RegionConfig, 0x9e, "\x00\x80")
	fd := r.rc.vectors(vfiouser.IRQMSIX, 1)[0]
	c := r.channel(0, 64)
	for i := uint32(1); i < 300; i++ {
		binary.LittleEndian.PutUint32(r.ep.at(epRAM), i)
		c.put(DescInterrupt, 4, epRAM, rcRAM+8)
		c.ringBell()
		signalled(t, r.irqs[1])
		r.ep.write32(windowBAR, 0, i)
		r.setReg(RegIRQRaise, RaiseMSIX)
		signalled(t, fd)
		require.Equal(t, i, binary.LittleEndian.Uint32(r.rc.at(rcRAM)))
		require.Equal(t, i, binary.LittleEndian.Uint32(r.rc.at(rcRAM+8)))
	}
}

// Either guest may go at any time; the other goes on, and nothing is left behind.
func TestGuestsThatDieInTheMiddle(t *testing.T) {
	for name, die := range map[string]func(r *rig){
		"the root complex": func(r *rig) { require.NoError(r.t, r.rc.Close()) },
		"the endpoint":     func(r *rig) { require.NoError(r.t, r.ep.Close()) },
		"the lab":          func(r *rig) { r.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.function()
			require.Zero(t, r.window(0, 0, 0x10000, rcRAM))
			r.start()
			var done atomic.Bool
			ended := make(chan struct{}, 3)
			for n := range 2 {
				c := r.channel(n, 64)
				go func() {
					defer func() { ended <- struct{}{} }()
					for !done.Load() {
						for range 8 {
							c.put(uint32(n)&DescFromRC, 1<<20, epRAM+0x400000, rcRAM+0x400000)
						}
						if r.ep.PostRegion(registersBAR, ChannelRegister(n, DMAHead), binary.LittleEndian.AppendUint32(nil, c.head)) != nil {
							return
						}
						time.Sleep(time.Millisecond)
						var b [4]byte
						for r.ep.ReadRegion(registersBAR, ChannelRegister(n, DMATail), b[:]) == nil && !done.Load() &&
							binary.LittleEndian.Uint32(b[:]) != c.head {
							time.Sleep(time.Millisecond)
						}
					}
				}()
			}
			go func() {
				defer func() { ended <- struct{}{} }()
				for b := make([]byte, 4); !done.Load(); {
					_ = r.ep.PostRegion(windowBAR, 4, b)
					_ = r.rc.PostRegion(0, 0x1040, b)
					if r.rc.ReadRegion(0, 0x2000, b) != nil && r.ep.ReadRegion(windowBAR, 0, b) != nil {
						return
					}
				}
			}()
			time.Sleep(30 * time.Millisecond)
			die(r)
			time.Sleep(30 * time.Millisecond)
			done.Store(true)
			for range 3 {
				<-ended
			}
			switch name {
			case "the root complex":
				require.NoError(t, r.lab.AwaitLink(t.Context(), false))
				require.Zero(t, r.reg(RegStatus)&StatusLinkUp)
			case "the endpoint":
				require.NoError(t, r.lab.AwaitLink(t.Context(), false))
				require.Equal(t, ones32, r.rc.read32(vfiouser.RegionConfig, 0))
			}
		})
	}
}

func TestDataPathsDoNotAllocate(t *testing.T) {
	r := newRig(t, func(c *Config) { c.TrapBARs = 1 })
	r.function()
	require.Zero(t, r.window(0, 0, 0x1000, rcRAM))
	r.start()
	b := make([]byte, 4)
	require.NoError(t, r.lab.AwaitLink(t.Context(), true)) // after what the executors did
	require.Zero(t, testing.AllocsPerRun(100, func() {
		r.lab.readInbound(0, 0, b)
		r.lab.writeInbound(0, 0, b)
	}))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		r.lab.readOutbound(0, b)
		r.lab.writeOutbound(0, b)
	}))
}
