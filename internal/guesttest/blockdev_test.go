package guesttest

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// TestVMBlockDevices serves a partition, and a disk with blocks of 4096 bytes.
func TestVMBlockDevices(t *testing.T) {
	parallel(t, 1)
	const size = 96 * mib
	whole, native := image(t, "whole.img", size), image(t, "native.img", size)
	patch(t, whole, 0, bytes.Repeat([]byte("before"), mib/6))
	before := content(t, whole, 0, mib)
	part := blktest.Partition(t, blktest.Loop(t, whole, blktest.LoopOptions{Partitions: true}), 1, mib, size-mib)
	nativeDevice := blktest.Loop(t, native, blktest.LoopOptions{BlockSize: 4096})

	s := serveWith(t, checked, []string{"--subsystem", "cafe:0042"}, part+",serial=PART", nativeDevice+",queues=2")
	assert.Equal(t, "partition", s.exports[0].Kind)
	assert.Equal(t, "block device", s.exports[1].Kind)
	g := boot(t, vm.Config{Devices: s.devices()})
	for disk, want := range map[string]suite.Values{
		"vda": {
			"size": fmt.Sprint((size - mib) / 512), "logical_block_size": "512", "serial": "PART",
			"features": with(suite.Discard, suite.WriteZeroes), "queues": "1",
		},
		"vdb": {
			"size": fmt.Sprint(size / 512), "logical_block_size": "4096", "physical_block_size": "4096",
			"features": with(suite.MQ, suite.Discard, suite.WriteZeroes), "queues": "2",
		},
	} {
		want["subsystem_vendor"], want["subsystem_device"] = "0xcafe", "0x0042"
		suite.Image(g.sh, disk, "").Shows(t, want)
	}
	g.sh(t, `
		for d in vda vdb; do
			fio --name=$d --filename=/dev/$d --direct=1 --rw=randrw --bsrange=4k-128k --size=32m \
				--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1
			blkdiscard -f /dev/$d
			dd if=/dev/$d bs=1M iflag=direct status=none | tr -cd '\0' | wc -c | grep -qx $(blockdev --getsize64 /dev/$d)
			mkfs.ext4 -q /dev/$d
			mount /dev/$d /mnt
			echo on $d >/mnt/file
			umount /mnt
			e2fsck -fn /dev/$d
		done
		if dd if=/dev/zero of=/dev/vdb bs=512 count=1 oflag=direct; then exit 1; fi # less than a block
	`)
	// The disk behind vdb grows.
	require.NoError(t, unix.Truncate(native, 2*size))
	blktest.Resize(t, nativeDevice)
	g.sh(t, fmt.Sprintf(`
		within 180 sh -c '[ $(lsblk -b -d -n -o SIZE /dev/vdb) = %d ]'
		mount /dev/vdb /mnt
		resize2fs /dev/vdb
		umount /mnt
	`, 2*size))
	g.powerOff(t)
	s.stop(t)

	for device, word := range map[string]string{part: "on vda", nativeDevice: "on vdb"} {
		run(t, "e2fsck", "-fn", device)
		assert.Equal(t, word, run(t, "debugfs", "-R", "cat /file", device), "%s", device)
	}
	assert.Equal(t, before, content(t, whole, 0, mib), "what is before the partition is as it was")
}
