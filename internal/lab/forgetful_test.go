package lab

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

// A reset of the RC takes away what the endpoint programmed. When it has done so
// again, the RC has the function that it had; if it is another, a new one.
func TestForgetfulController(t *testing.T) {
	s := &slot{calls: make(chan string, 10)}
	r := newRig(t, func(c *Config) { c.Slot, c.Forgetful = s, true })
	require.Equal(t, uint32(Caps2Forgetful), r.reg(RegCaps2)&Caps2Forgetful)
	program := func() {
		r.function()
		r.further(1, epRAM+0x20000)
		require.Zero(t, r.window(0, 0, 0x1000, rcRAM))
	}
	program()
	r.setReg(RegEventEnable, allEvents)
	r.start()
	require.Equal(t, "plug[0 1]", <-s.calls)
	f1 := r.host(1)
	r.events()
	for range 2 {
		require.NoError(t, r.rc.Reset())
		require.Equal(t, uint32(EventLinkDown|EventPERSTAssert|EventPERSTDeassert), r.events())
		require.NoError(t, f1.Reset())
		for _, off := range []uint64{
			RegControl, RegStatus, RegMSIX, BARRegister(0, BARControl), RangeRegister(0, MapControl), ConfigRegister(0),
			WindowRegister(0, MapControl), FunctionRegister(1, RegMSIX), FunctionRegister(1, ConfigRegister(0)),
		} {
			require.Zero(t, r.reg(off), "%#x", off)
		}
		require.Equal(t, uint32(allEvents), r.reg(RegEventEnable))
		require.Equal(t, uint32(FunctionPresent), r.reg(FunctionRegister(1, RegFunction)))
		require.Equal(t, ones32, r.rc.id(), "it does not answer yet")
		require.Equal(t, ones32, f1.id())
		program()
		require.Equal(t, ones32, r.rc.id())
		r.setReg(RegControl, ControlLinkEnable)
		require.Equal(t, uint32(EventLinkUp), r.events())
		require.Equal(t, uint32(0x56781234), r.rc.id(), "it is back")
		require.Equal(t, uint32(0x00011234), f1.id())
		require.NoError(t, r.rc.Reset())
		require.Zero(t, r.events(), "nobody has used it since it was reset")
		r.enable(masterAndMemory)
		copy(r.rc.at(rcRAM+0x800), "window")
		require.Equal(t, "window", r.ep.read(windowBAR, 0x800, 6))
		require.Equal(t, uint32(EventBusMaster), r.events())
	}
	require.Empty(t, s.calls, "it never left its slot")

	for name, change := range map[string]func(){
		"a BAR of another size":   func() { r.bar(0, 0x8000, 0) },
		"memory that is mapped":   func() { require.Zero(t, r.rangeTo(0, 0, 0, 0x1000, epRAM+0x11000)) },
		"vectors":                 func() { r.setReg(RegMSIX, CapPresent|7) },
		"fewer functions":         func() { r.setReg(FunctionRegister(1, RegFunction), 0) },
		"a pin":                   func() { r.poke(0x3d, "\x00") },
		"the link is not started": nil,
	} {
		t.Run(name, func(t *testing.T) {
			r.enable(masterAndMemory)
			require.NoError(t, r.rc.Reset())
			program()
			if change == nil {
				r.setReg(RegControl, 0)
				require.Equal(t, "unplug", <-s.calls)
			} else {
				change()
				r.setReg(RegControl, ControlLinkEnable)
				require.Equal(t, "unplug", <-s.calls)
				require.Regexp(t, "plug.*", <-s.calls)
			}
			require.Equal(t, ones32, r.rc.id())
			require.Equal(t, ones32, r.rc.read32(vfiouser.RegionConfig, 0x10))
			r.setReg(RegControl, 0)
			if change != nil {
				require.Equal(t, "unplug", <-s.calls)
			}
			// From the start again, for the next.
			program()
			r.setReg(RegControl, ControlLinkEnable)
			require.Equal(t, "plug[0 1]", <-s.calls)
			r.rc.connect(r.lab.HostSocket(0))
			f1 = r.host(1)
			require.Equal(t, uint32(0x56781234), r.rc.id())
		})
	}
}
