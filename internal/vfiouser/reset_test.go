package vfiouser

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReset(t *testing.T) {
	r := newRig(t, Options{})
	c := r.client(ClientOptions{})
	require.NoError(t, c.Reset())
	require.Equal(t, 1, r.dev.see().resets)
	r.dev.setFail(syscall.ETIMEDOUT)
	require.ErrorIs(t, c.Reset(), syscall.ETIMEDOUT)
}

func TestUnknownCommandsAreRefused(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	for _, cmd := range []Command{0, CmdDMARead, CmdDMAWrite, 14, 16, 17, 18, 0xffff} {
		r.refused(syscall.ENOTSUP, message1(cmd, 0, make([]byte, 100)), eventfd(t))
	}
}
