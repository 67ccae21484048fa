package vfiouser

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGetIRQInfo(t *testing.T) {
	r := newRig(t, Options{})
	c := r.client(ClientOptions{})
	for index, want := range map[int]IRQInfo{
		IRQINTx: {7, 0, 1},
		IRQMSI:  {0, 1, 0},
		IRQMSIX: {IRQEventfd, 2, 40},
		IRQReq:  {0, 4, 0},
	} {
		got, err := c.IRQ(index)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := c.IRQ(5)
	require.ErrorIs(t, err, syscall.EINVAL)
}

func TestGetIRQInfoRefused(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	r.refused(syscall.EINVAL, message1(CmdGetIRQInfo, 0, make([]byte, 16)))
	r.refused(syscall.EINVAL, message1(CmdGetIRQInfo, 0, encoded(irqInfoSize, IRQInfo{}.put)[:15]))
}

const (
	triggerEventfd = IRQDataEventfd | IRQActionTrigger
	triggerNone    = IRQDataNone | IRQActionTrigger
	triggerBool    = IRQDataBool | IRQActionTrigger
)

func TestSetIRQs(t *testing.T) {
	r := newRig(t, Options{})
	c := r.client(ClientOptions{})
	fds := []int{eventfd(t), eventfd(t)}
	for _, s := range []IRQSet{
		{Flags: triggerEventfd, Index: IRQMSIX, Start: 3, Count: 2, FDs: fds},
		{Flags: triggerEventfd, Index: IRQMSIX, Start: 0, Count: 40},
		{Flags: triggerNone, Index: IRQMSIX},
		{Flags: triggerBool, Index: IRQMSIX, Start: 38, Count: 2, Bools: []byte{0, 1}},
		{Flags: IRQDataNone | IRQActionUnmask, Index: IRQINTx, Count: 1},
		{Flags: triggerNone, Index: IRQMSI},
	} {
		require.NoError(t, c.SetIRQs(s))
		got := r.dev.see().irqs[len(r.dev.see().irqs)-1]
		require.Len(t, got.FDs, len(s.FDs))
		got.FDs, s.FDs = nil, nil
		require.Equal(t, s, got)
	}
	r.dev.setFail(syscall.ENOSPC)
	require.ErrorIs(t, c.SetIRQs(IRQSet{Flags: triggerEventfd, Index: IRQMSIX, Count: 2, FDs: fds}), syscall.ENOSPC)
}

func TestSetIRQsRefused(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	set := func(s IRQSet) []byte { return message1(CmdSetIRQs, 0, encoded(s.size(), s.put)) }
	fd := eventfd(t)

	r.refused(syscall.EINVAL, message1(CmdSetIRQs, 0, make([]byte, 19)))
	r.refused(syscall.EINVAL, message1(CmdSetIRQs, 0, make([]byte, 20)), fd)
	for _, flags := range []uint32{
		0, IRQDataNone, IRQActionTrigger, triggerNone | IRQDataBool, triggerNone | IRQActionMask, triggerNone | 1<<6,
	} {
		r.refused(syscall.EINVAL, set(IRQSet{Flags: flags, Index: IRQMSIX, Count: 1}), fd)
	}
	r.refused(syscall.EINVAL, set(IRQSet{Flags: triggerNone, Index: 5}))
	r.refused(syscall.EINVAL, set(IRQSet{Flags: triggerNone, Index: IRQMSIX, Count: 41}))
	r.refused(syscall.EINVAL, set(IRQSet{Flags: triggerNone, Index: IRQMSIX, Start: 41}))
	r.refused(syscall.EINVAL, set(IRQSet{Flags: triggerNone, Index: IRQMSIX, Start: 2, Count: ^uint32(0)}))
	r.refused(syscall.EINVAL, set(IRQSet{Flags: triggerNone, Index: IRQMSIX, Start: 1, Count: 0}))
	r.refused(syscall.EINVAL, set(IRQSet{Flags: triggerEventfd, Index: IRQMSIX, Count: 0}))
	r.refused(syscall.EINVAL, set(IRQSet{Flags: triggerEventfd, Index: IRQMSIX, Count: 1}), fd, fd)
	r.refused(syscall.EINVAL, set(IRQSet{Flags: triggerEventfd, Index: IRQMSIX, Count: 3}), fd, fd)
	r.refused(syscall.EINVAL, set(IRQSet{Flags: triggerEventfd, Index: IRQMSI, Count: 1}), fd)
	r.refused(syscall.EINVAL, set(IRQSet{Flags: triggerBool, Index: IRQMSIX, Count: 3, Bools: []byte{1, 1}}))
	require.Empty(t, r.dev.see().irqs)
}
