package lab

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

// step is one access of one of the guests, in eight bytes of fuzz input.
func (r *rig) step(b []byte) error {
	off := uint64(binary.LittleEndian.Uint16(b[2:]))
	value := b[4:8]
	var buf [8]byte
	switch b[0] % 8 {
	case 2:
		return r.rc.Reset()
	case 3:
		return r.ep.ReadRegion(registersBAR, off&^7, buf[:])
	case 4:
		return r.ep.PostRegion(windowBAR, off<<8, value[:1+b[1]%4])
	case 5:
		return r.rc.PostRegion(int(b[1]%2)*2, off%0x4000&^3, value)
	case 6:
		return r.rc.WriteRegion(vfiouser.RegionConfig, off%0xffc, value)
	case 7:
		return r.rc.ReadRegion(int(b[1]%2)*2, off%0x4000&^7, buf[:])
	}
	// The endpoint's registers, where they are dense.
	if b[1] < 0x80 {
		off %= blockDMA + numChannels*strideChannel
	} else {
		off = FunctionRegister(int(b[1]%numFunctions), off%strideFunction)
	}
	return r.ep.PostRegion(registersBAR, off&^3, value)
}

// input builds fuzz input of writes to registers.
func input(writes ...[2]uint32) (in []byte) {
	for _, w := range writes {
		in = append(in, 0, 0, byte(w[0]), byte(w[0]>>8))
		in = binary.LittleEndian.AppendUint32(in, w[1])
	}
	return in
}

// FuzzLink lets both guests do whatever they like to the link. It must neither die nor
// stop answering them, and what it is afterwards must be what the registers say.
func FuzzLink(f *testing.F) {
	f.Add(input([2]uint32{RegControl, ControlReset}))
	f.Add(input([2]uint32{RegControl, 0}, [2]uint32{0x100, BARPresent}, [2]uint32{0x108, 0x1000}, [2]uint32{RegControl, 1}))
	f.Add(input([2]uint32{0x4008, epRAM}, [2]uint32{0x4010, 2}, [2]uint32{0x4000, DMAEnable}, [2]uint32{0x4014, 2}))
	f.Add(input([2]uint32{0x2010, 0x1000}, [2]uint32{0x201c, 1}, [2]uint32{0x2000, MapEnable}))
	f.Add(input([2]uint32{0x0860, 0}, [2]uint32{RegIRQRaise, RaiseMSIX}, [2]uint32{RegEventEnable, allEvents}))
	f.Add([]byte{4, 3, 0, 0, 1, 2, 3, 4, 5, 0, 64, 16, 7, 0, 0, 0, 6, 0, 4, 0, 6, 0, 0, 0, 7, 0, 0, 32, 0, 0, 0, 0})
	r := newRig(f, func(c *Config) { c.TrapBARs, c.Forgetful = 1, true })
	f.Fuzz(func(t *testing.T, in []byte) {
		r.t, r.ep.t, r.rc.t = t, t, t // which ends this root complex, too
		r.setReg(RegControl, ControlReset)
		r.function()
		require.Zero(t, r.window(0, 0, 0x10000, rcRAM))
		r.start()
		for ; len(in) >= 8; in = in[8:] {
			require.NotErrorIs(t, r.step(in), vfiouser.ErrTimeout)
		}
		require.Equal(t, uint32(identity), r.reg(RegID))
		status := r.reg(RegStatus)
		first := r.rc.read32(vfiouser.RegionConfig, 0)
		if r.reg(RegControl)&ControlLinkEnable == 0 {
			require.Zero(t, status&StatusLinkUp)
			require.Equal(t, ones32, first)
		}
		if status&StatusLinkUp != 0 {
			require.Equal(t, r.reg(ConfigRegister(0)), first)
		}
	})
}
