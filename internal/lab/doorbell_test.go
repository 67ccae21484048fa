package lab

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// registersAt is where the endpoint's guest puts the controller's BAR 0.
const registersAt = 0x10000000

func TestDoorbell(t *testing.T) {
	for _, sixteen := range []bool{false, true} {
		r := newRig(t, func(c *Config) { c.Doorbell16 = sixteen })
		require.Equal(t, Caps2Doorbell|when(sixteen, Caps2Doorbell16)|vectorDoorbell<<8, r.reg(RegCaps2))
		r.ep.write32(vfiouser.RegionConfig, virtiopci.ConfigBAR0, registersAt)
		r.ep.write(vfiouser.RegionConfig, virtiopci.ConfigCommand, "\x06\x00")
		r.function()
		r.bar(4, 0x1000, 0)
		require.Zero(t, r.rangeTo(3, 4, 0, 0x1000, registersAt+blockDoorbell))
		r.start()
		rings := uint64(0)
		rung := func(more uint64, why string) {
			t.Helper()
			require.Zero(t, r.rc.read32(4, 0), "it reads 0, after the writes before")
			require.Zero(t, r.reg(blockDoorbell))
			rings += more
			require.Equal(t, rings, r.lab.Stats().Doorbells, why)
			require.Equal(t, more, count(r.irqs[vectorDoorbell]), why)
		}
		r.rc.write32(4, 0, 0)
		rung(1, "the RC")
		r.rc.write32(4, 0, 7)
		r.setReg(blockDoorbell, 0)
		rung(2, "both")
		r.rc.write(4, 0, "\x01\x00")
		rung(uint64(when(sixteen, 1)), "16 bits")
		r.ep.write(registersBAR, blockDoorbell, "\x01\x00")
		rung(uint64(when(sixteen, 1)), "16 bits")
		r.rc.write(4, 0, "\x01")
		r.rc.write(4, 0, "\x01\x00\x00\x00\x00\x00\x00\x00")
		r.rc.write32(4, 4, 1)
		rung(0, "what is no doorbell")
		c := r.channel(0, 4)
		require.Equal(t, uint32(DescDone), c.one(DescFromRC, 4, registersAt+blockDoorbell, rcRAM))
		rung(1, "DMA")
		require.Empty(t, r.ep.mmio.writes(), "the guest has nothing to do with it")

		r.ep.write(vfiouser.RegionConfig, virtiopci.ConfigCommand, "\x04\x00")
		r.rc.write32(4, 0, 0)
		require.Equal(t, ones32, r.rc.read32(4, 0), "the controller does not decode its BAR")
		require.Equal(t, rings, r.lab.Stats().Doorbells)
	}
}
