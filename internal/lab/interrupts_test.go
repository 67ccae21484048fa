package lab

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

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
