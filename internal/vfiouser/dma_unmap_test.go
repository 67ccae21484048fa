package vfiouser

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func dmaUnmap(m DMAUnmap) []byte { return message1(CmdDMAUnmap, 0, encoded(dmaUnmapSize, m.put)) }

func TestDMAUnmap(t *testing.T) {
	r := newRig(t, Options{})
	c := r.client(ClientOptions{})
	one, all := DMAUnmap{0, 0x4000, 0x2000}, DMAUnmap{DMAUnmapAll, 0, 0}
	require.NoError(t, c.UnmapDMA(one))
	require.NoError(t, c.UnmapDMA(all))
	require.Equal(t, []DMAUnmap{one, all}, r.dev.see().unmaps)

	r.dev.setFail(syscall.ENOENT)
	require.ErrorIs(t, c.UnmapDMA(one), syscall.ENOENT)
}

func TestDMAUnmapEchoesTheRequestAndClosesDescriptors(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	request := dmaUnmap(DMAUnmap{0, 0x4000, 0x2000})
	r.sendFDs(request, eventfd(t), eventfd(t))
	h, payload := r.receive()
	require.Equal(t, FlagReply, h.Flags)
	require.Equal(t, request[HeaderSize:], payload)
}

func TestDMAUnmapRefused(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	r.refused(syscall.EINVAL, message1(CmdDMAUnmap, 0, make([]byte, 23)))
	r.refused(syscall.EINVAL, dmaUnmap(DMAUnmap{0, 0x1000, 0}))
	r.refused(syscall.EINVAL, dmaUnmap(DMAUnmap{0, 0x1000, ^uint64(0)}))
	r.refused(syscall.EINVAL, dmaUnmap(DMAUnmap{DMAUnmapAll, 0, 0x1000}))
	r.refused(syscall.ENOTSUP, dmaUnmap(DMAUnmap{1, 0, 0x1000}))
	require.Empty(t, r.dev.see().unmaps)
}
