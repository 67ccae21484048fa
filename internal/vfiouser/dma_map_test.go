package vfiouser

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func dmaMap(m DMAMap) []byte { return message1(CmdDMAMap, 0, encoded(dmaMapSize, m.put)) }

func TestDMAMap(t *testing.T) {
	r := newRig(t, Options{})
	c := r.client(ClientOptions{})
	ram, rom := DMAMap{3, 0x1000, 0x4000, 0x2000}, DMAMap{1, 0, 0xfffc0000, 0x40000}
	require.NoError(t, c.MapDMA(ram, eventfd(t)))
	require.NoError(t, c.MapDMA(rom, -1))
	require.Equal(t, []DMAMap{ram, rom}, r.dev.see().maps)

	r.dev.setFail(syscall.EEXIST)
	require.ErrorIs(t, c.MapDMA(ram, eventfd(t)), syscall.EEXIST)
}

func TestDMAMapRefused(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	good := DMAMap{3, 0, 0x1000, 0x1000}
	short := encoded(dmaMapSize, good.put)[:31]
	argsz := encoded(dmaMapSize, good.put)
	argsz[0] = 31
	fd := eventfd(t)

	r.refused(syscall.EINVAL, message1(CmdDMAMap, 0, short), fd)
	r.refused(syscall.EINVAL, message1(CmdDMAMap, 0, argsz), fd)
	r.refused(syscall.EINVAL, dmaMap(DMAMap{3, 0, 0x1000, 0}), fd)
	r.refused(syscall.EINVAL, dmaMap(DMAMap{3, 0, ^uint64(0) - 10, 0x1000}), fd)
	r.refused(syscall.EINVAL, dmaMap(DMAMap{7, 0, 0x1000, 0x1000}), fd)
	r.refused(syscall.EINVAL, dmaMap(good), fd, fd)
	require.Empty(t, r.dev.see().maps)

	r.send(dmaMap(DMAMap{3, 0, ^uint64(0xfff), 0x1000}))
	h, _ := r.receive()
	require.Equal(t, FlagReply, h.Flags, "up to the last byte there is")
}
