package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
)

// A disk with blocks of 4096 bytes is offered as it is, or with blocks of 512, or
// refused, and check says which and why.
func TestCheckOfADiskWithLargeBlocks(t *testing.T) {
	loop := blktest.Loop(t, newImage(t, 1<<20), blktest.LoopOptions{BlockSize: 4096})
	const (
		native   = "blocks    4096 bytes logical, 4096 bytes physical\n"
		emulated = "blocks    512 bytes logical, 4096 bytes physical; emulated, the disk's own are of 4096 bytes\n"
		lost     = "BLK_SIZE (bit 6) is lost: it cannot be offered without NOTIFICATION_DATA (bit 38): " +
			"the doorbell takes only 16 bits of data"
	)
	for _, c := range []struct {
		disk, slot string
		code       int
		out, err   string
	}{
		{"", "", exitOK, native, ""},
		{",block-size=native", ",trap-free", exitOK, native, ""},
		{",block-size=4K", ",trap-free,doorbell=32", exitOK, native, ""},
		{",block-size=512", "", exitOK, emulated, ""},
		{",block-size=512", ",trap-free,doorbell=16", exitOK, emulated, ""},
		{"", ",trap-free,doorbell=16", exitFailed, "", loop + ": has blocks of 4096 bytes, and no driver can be told: " + lost},
	} {
		code, out, errOut := cli("check", "--disk", loop+c.disk, "--epc", "vfio-user:"+t.TempDir()+"/s"+c.slot)
		require.Equal(t, c.code, code, errOut)
		require.Contains(t, out, c.out)
		require.Contains(t, errOut, c.err)
		require.Equal(t, c.code == exitFailed, strings.Contains(errOut, "add block-size=512"))
	}
	for text, want := range map[string]string{
		"vfio-user:x,doorbell=16":           "makes a difference to trap-free slots only: add trap-free",
		"vfio-user:x,trap-free,doorbell=64": "choose trap-free, doorbell=16 or doorbell=32",
	} {
		code, _, errOut := cli("check", "--disk", loop, "--epc", text)
		require.Equal(t, exitUsage, code)
		require.Contains(t, errOut, want)
	}
}
