package lab

import (
	"fmt"
	"strings"
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
	require.Eventually(t, func() bool { return len(r.ep.mmio.writes()) == 1 }, patience, time.Millisecond)
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
	was := completionTimeout
	t.Cleanup(func() { completionTimeout = was })
	completionTimeout = time.Hour // who waits for the endpoint, waits in vain
	r := newRig(t, func(c *Config) { c.TrapBARs = 1 })
	r.function()
	r.start()
	r.rc.write(0, 0x1040, "\x07\x00")
	r.rc.write(0, 0x1040, "\x01\x02\x03\x04")
	r.rc.write(0, 0x1044, "\x09")
	r.rc.write(0, 0x1048, "12345678")
	var got []access
	require.Eventually(t, func() bool { got = append(got, r.ep.mmio.writes()...); return len(got) == 4 }, patience, time.Millisecond)
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
	require.NoError(t, r.rc.WriteRegion(0, 0x1040, []byte{1, 0}))
	require.NoError(t, r.rc.WriteRegion(0, 0x2000, []byte("after")))
	require.NotEqual(t, "after", string(r.ep.at(epRAM + 0x12000)[:5]), "a posted write does not overtake another")
	time.AfterFunc(50*time.Millisecond, func() { close(block) })
	require.Equal(t, "after", r.rc.read(0, 0x2000, 5), "a read pushes them ahead")
	require.Equal(t, []access{{its, "\x01\x00", true}}, r.ep.mmio.writes())
}

// An endpoint that does not answer costs the RC its accesses, not more.
func TestEndpointThatStandsStill(t *testing.T) {
	was := completionTimeout
	t.Cleanup(func() { completionTimeout = was })
	completionTimeout = 500 * time.Millisecond
	r := newRig(t, func(c *Config) { c.TrapBARs = 1 })
	r.function()
	r.start()
	block := make(chan struct{})
	r.ep.mmio.mu.Lock()
	r.ep.mmio.block = block
	r.ep.mmio.mu.Unlock()
	for range 5 {
		r.rc.write32(0, 0x1040, 1)
	}
	begin := time.Now()
	require.Equal(t, ones32, r.rc.read32(0, 0x2000), "the read waits for them in vain")
	require.Less(t, time.Since(begin), 5*time.Second, "the RC's monitor does not wait for longer")
	close(block)
	require.Eventually(t, func() bool { return r.rc.read32(0, 0x2000) == 0 }, patience, 10*time.Millisecond)
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
