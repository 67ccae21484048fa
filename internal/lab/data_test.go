package lab

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

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
		r.lab.functions[0].readInbound(0, 0, b)
		r.lab.functions[0].writeInbound(0, 0, b)
	}))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		r.lab.readOutbound(0, b)
		r.lab.writeOutbound(0, b)
	}))
	ring := &channelRig{rig: r, ring: epRAM + 0x10000, size: 2}
	ring.put(0, 4096, epRAM, rcRAM)
	c := new(channel)
	c.init(r.lab, 0)
	c.base, c.mask, c.head = ring.ring, 1, 1
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := c.execute(0); err != nil {
			t.Error(err)
		}
	}))
	require.Equal(t, uint64(101), r.lab.Stats().DMATransfers)
}
