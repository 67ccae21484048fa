package vfiouser

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGetInfo(t *testing.T) {
	c := newRig(t, Options{}).client(ClientOptions{})
	info, err := c.Info()
	require.NoError(t, err)
	require.Equal(t, DeviceInfo{Flags: 3, Regions: 9, IRQs: 5}, info)
}

func TestGetInfoRefused(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	r.refused(syscall.EINVAL, message1(CmdGetInfo, 0, nil))
	r.refused(syscall.EINVAL, message1(CmdGetInfo, 0, make([]byte, 16)), eventfd(t))
}
