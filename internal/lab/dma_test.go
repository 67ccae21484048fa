package lab

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

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
	require.Eventually(c.t, func() bool { return c.reg(ChannelRegister(c.n, DMATail))-i-1 < 1<<31 }, patience, time.Millisecond)
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
	require.Eventually(t, func() bool { return r.reg(ChannelRegister(0, DMAStatus))&DMABusy != 0 }, patience, time.Millisecond)
	r.setReg(ChannelRegister(0, DMAControl), 0)
	close(r.rc.mmio.block)
	require.Eventually(t, func() bool { return r.reg(ChannelRegister(0, DMAStatus)) == 0 }, patience, time.Millisecond)
	c = r.channel(0, 4)
	require.Equal(t, uint32(DescDone), c.one(0, 4, epRAM, rcRAM))
	r.lab.StallDMA(true)
	c.put(0, 4, epRAM, rcRAM)
	c.ringBell()
	r.setReg(RegControl, ControlReset) // ends, although the channel is stalled
	require.Zero(t, r.reg(ChannelRegister(0, DMAStatus)))
}
