package guesttest

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// TestVMEmulatedBlocks shows a disk with blocks of 4096 bytes to a stock driver as
// one with blocks of 512, through registers that are plain memory and a doorbell of
// 16 bits. Another disk, of its own blocks, cannot be offered there.
func TestVMEmulatedBlocks(t *testing.T) {
	parallel(t, 1)
	image4k := func(name string) string {
		return blktest.Loop(t, image(t, name, 128*mib), blktest.LoopOptions{BlockSize: 4096})
	}
	first, second := image4k("files.img"), image4k("raw.img")
	s := serveIn(t, checked, ",trap-free,doorbell=16", nil, first+",block-size=512", second+",block-size=512")
	for _, e := range s.exports {
		assert.EqualValues(t, 512, e.LogicalBlock)
		assert.EqualValues(t, 4096, e.PhysicalBlock)
	}
	g := boot(t, vm.Config{CPUs: 2, Devices: s.devices()})
	vda := suite.Image(g.sh, "vda", first)
	vda.Shows(t, suite.Values{
		"logical_block_size": "512", "physical_block_size": "4096", "size": fmt.Sprint(128 * mib / 512),
	})
	sums := vda.Fill(t)
	g.sh(t, `
		# A sector is written, and its neighbours stay.
		fill vdb 1 0
		dd if=/dev/zero of=/dev/vdb bs=512 count=1 seek=3 oflag=direct status=none
		blkdiscard --zeroout --offset 5120 --length 512 /dev/vdb
		fio --name=mixed --filename=/dev/vdb --direct=1 --rw=randrw --bsrange=512-64k --blockalign=512 --numjobs=2 \
			--offset=1m --size=16m --offset_increment=17408512 --ioengine=libaio --iodepth=16 --fsync=64 \
			--verify=crc32c --verify_fatal=1
		sync
	`)
	g.powerOff(t)
	s.stop(t)
	want := make([]byte, 8192)
	for i := range want {
		if sector := i / 512; sector != 3 && sector != 10 {
			want[i] = 0xaa
		}
	}
	require.Equal(t, want, content(t, second, 0, 8192), "whole blocks around the sectors that were written")
	t.Run("file system outside", func(t *testing.T) {
		blocks512 := filepath.Join(t.TempDir(), "copy.img") // the file system's may be smaller than the disk's
		run(t, "cp", "--sparse=always", first, blocks512)
		sums.Check(t, suite.Image(g.sh, "vda", blocks512))
	})
}

// TestVMEmulatedFirmware has the BIOS, which takes sectors of 512 bytes only, boot a
// disk with blocks of 4096, read it and write to it.
func TestVMEmulatedFirmware(t *testing.T) {
	parallel(t, 1)
	const text = "read by the firmware"
	file := bootable(t, "disk.img", text)
	disk := blktest.Loop(t, file, blktest.LoopOptions{BlockSize: 4096})
	s := serveTrapFree(t, disk+",block-size=512")
	res, err := vm.Run(t.Context(), vm.Config{
		BootDisk: true, Until: "written", Devices: []string{vm.VFIOUser(s.exports[0].Socket, vm.BootIndex(0))},
	})
	require.NoError(t, err)
	assert.Contains(t, res.Debug, text)
	s.stop(t)
	assert.Equal(t, content(t, disk, loadFrom*512, saveSectors*512), content(t, disk, saveTo*512, saveSectors*512))
}
