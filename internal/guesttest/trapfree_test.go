package guesttest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// serveTrapFree is serve for disks whose registers are plain memory. The test
// fails if any guest's access to them came as a message.
func serveTrapFree(t *testing.T, disks ...string) *server {
	t.Helper()
	s := serveIn(t, checked, ",trap-free", nil, disks...)
	t.Cleanup(func() {
		counts := messages.FindAllStringSubmatch(s.log.String(), -1)
		assert.NotEmpty(t, counts, "the server counts the messages of each guest")
		for _, m := range counts {
			assert.Equal(t, "0", m[1], "accesses to registers that came as messages")
		}
	})
	return s
}

var (
	messages = regexp.MustCompile(`accesses to BAR memory that came as messages.* count=(\d+)`)
	ringSeen = regexp.MustCompile(`ring found.* format=(\w+)`)
)

// rings returns the formats of the rings that the server found, in order.
func (s *server) rings() []string {
	var formats []string
	for _, m := range ringSeen.FindAllStringSubmatch(s.log.String(), -1) {
		formats = append(formats, m[1])
	}
	return formats
}

// TestVMTrapFree is what TestVMData shows, by registers that are plain memory:
// the stock drivers bind, and what they write is what they read and what is on
// the disk.
func TestVMTrapFree(t *testing.T) {
	eachKernel(t, func(t *testing.T, k vm.Kernel) {
		files, raw, locked := image(t, "files.img", 256*mib), image(t, "raw.img", 128*mib), image(t, "locked.img", 16*mib)
		back := blktest.Loop(t, image(t, "back.img", 16*mib), blktest.LoopOptions{})
		fourK := blktest.Loop(t, image(t, "4k.img", 64*mib), blktest.LoopOptions{BlockSize: 4096})
		s := serveTrapFree(t, files+",serial=FILES", raw, back, fourK, locked+",readonly")
		g := boot(t, vm.Config{Kernel: k, CPUs: 4, Devices: s.devices()})

		vda, vdb, vde := suite.Image(g.sh, "vda", files), suite.Image(g.sh, "vdb", raw), suite.Image(g.sh, "vde", locked)
		var sums suite.Files
		t.Run("values", func(t *testing.T) {
			vda.Shows(t, suite.Values{
				"driver": "virtio_blk", "status": "0x0000000f", "serial": "FILES", "ro": "0", "vectors": "2",
				"size": fmt.Sprint(256 * mib / 512), "write_cache": "write back", "depth": "256", "queues": "1",
			})
			suite.Image(g.sh, "vdd", fourK).Shows(t, suite.Values{"logical_block_size": "4096"})
			vde.Shows(t, suite.Values{"ro": "1"})
		})
		t.Run("file system", func(t *testing.T) { sums = vda.Fill(t) })
		t.Run("random", func(t *testing.T) {
			vdb.Random(t, 4, 16)
			g.sh(t, `
				fio --name=4k --filename=/dev/vdd --direct=1 --rw=randrw --bsrange=4k-64k --size=32m \
					--ioengine=io_uring --iodepth=32 --verify=crc32c --verify_fatal=1
			`)
		})
		t.Run("discard", func(t *testing.T) { vdb.Discards(t, 16) })
		t.Run("flush", func(t *testing.T) { suite.Image(g.sh, "vdc", back).Evidence(t) })
		t.Run("read-only", func(t *testing.T) { vde.ReadOnly(t) })
		t.Run("resize", func(t *testing.T) {
			require.NoError(t, unix.Truncate(locked, 32*mib))
			vde.Sized(t, 32*mib)
		})
		g.powerOff(t)
		assert.Contains(t, s.rings(), "packed", "Linux takes the packed ring")
		s.stop(t)
		t.Run("file system outside", func(t *testing.T) { sums.Check(t, vda) })
	})
}

// TestVMTrapFreeRebind takes the device from its driver in the middle of I/O and
// gives it back, hundreds of times: no driver waits for the end of a reset.
func TestVMTrapFreeRebind(t *testing.T) {
	const rounds = 500
	parallel(t, 1)
	disk := image(t, "disk.img", 64*mib)
	s := serveTrapFree(t, disk)
	g := boot(t, vm.Config{CPUs: 2, Devices: s.devices(), Timeout: 30 * time.Minute})
	g.trouble = true // requests that are cut off are I/O errors to the guest
	vda := suite.Image(g.sh, "vda", disk)
	kept := vda.Keep(t)
	g.sh(t, fmt.Sprintf(`
		driver=/sys/bus/virtio/drivers/virtio_blk device=$(virtio vda)
		for i in $(seq %d); do
			dd if=/dev/vda of=/dev/null bs=256k iflag=direct status=none 2>/dev/null &
			# Without nocreat it would make a file where the device was a moment ago.
			dd if=/dev/zero of=/dev/vda bs=64k seek=512 conv=nocreat oflag=direct status=none 2>/dev/null &
			echo $device >$driver/unbind
			wait
			echo $device >$driver/bind
			[ "$(cat /sys/block/vda/device/status)" = 0x0000000f ] || { echo "round $i"; exit 1; }
		done
	`, rounds))
	g.sh(t, "test -b /dev/vda")
	assert.Equal(t, kept, vda.Kept(t), "what nobody wrote to is what it was")
	g.powerOff(t)
	s.stop(t)
	outside := sha256.Sum256(content(t, disk, 0, 8*mib))
	assert.Equal(t, kept, hex.EncodeToString(outside[:]), "outside, too")
}

// TestVMTrapFreeQueues has a stock driver set up several queues, again and again, and
// counts how often all of them were captured. If one was missed, the server says so
// and serves none.
func TestVMTrapFreeQueues(t *testing.T) {
	const queues, rounds = 4, 100
	parallel(t, 2)
	disk := image(t, "disk.img", 64*mib)
	s := serveTrapFree(t, disk+fmt.Sprintf(",queues=%d", queues))
	s.trouble = true // a queue may be missed
	g := boot(t, vm.Config{CPUs: queues, Devices: s.devices(), Timeout: 30 * time.Minute, Reboot: true})
	g.trouble = true // then its requests hang
	captured := 0
	for missed := 0; captured+missed < rounds; missed++ {
		require.LessOrEqual(t, missed, rounds/10, "misses are rare; each takes more than a minute")
		out := g.sh(t, fmt.Sprintf(rebind, rounds-captured-missed))
		n, err := strconv.Atoi(strings.TrimSpace(out))
		require.NoError(t, err, out)
		captured += n
		if captured+missed == rounds {
			break
		}
		require.Equal(t, missed+1, strings.Count(s.log.String(), "were not captured; unbind the driver"), "a hang has a reason")
		_, err = g.QMP(t.Context(), "system_reset", nil)
		require.NoError(t, err)
		g.up(t)
	}
	t.Logf("all of %d queues captured in %d of %d set-ups", queues, captured, rounds)
	assert.GreaterOrEqual(t, captured, rounds*9/10)
	g.sh(t, `
		fio --name=queues --filename=/dev/vda --direct=1 --rw=randrw --bsrange=4k-64k --numjobs=4 --size=8m --offset_increment=8m \
			--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --cpus_allowed=0-3 --cpus_allowed_policy=split
	`)
	g.powerOff(t)
	s.stop(t)
}

// rebind unbinds and binds the driver so many times, and reads by each queue after
// each. It prints how often that went well before the first time it hung.
const rebind = `
	driver=/sys/bus/virtio/drivers/virtio_blk device=$(virtio vda)
	for i in $(seq %d); do
		echo $device >$driver/unbind
		(
			echo $device >$driver/bind
			for c in 0 1 2 3; do
				taskset -c $c dd if=/dev/vda of=/dev/null bs=4k count=4 iflag=direct status=none || exit 1
			done
		) &
		ended() { ! kill -0 $! 2>/dev/null; }
		within 60 ended >/dev/null || { echo $((i - 1)); exit 0; }
		wait $!
	done
	echo $i
`

// TestVMTrapFreeRestarts has one server outlive firmware, kernels that reboot
// and are reset in the middle of I/O, and guests that are killed.
func TestVMTrapFreeRestarts(t *testing.T) {
	parallel(t, 1)
	disk := bootable(t, "disk.img", "read by the firmware")
	s := serveTrapFree(t, disk)
	res, err := vm.Run(t.Context(), vm.Config{
		BootDisk: true, Until: "written", Devices: []string{vm.VFIOUser(s.exports[0].Socket, vm.BootIndex(0))},
	})
	require.NoError(t, err)
	assert.Contains(t, res.Debug, "read by the firmware")
	assert.Equal(t, content(t, disk, loadFrom*512, saveSectors*512), content(t, disk, saveTo*512, saveSectors*512))
	assert.Equal(t, []string{"split"}, s.rings(), "the firmware knows split rings only")

	require.NoError(t, unix.Truncate(disk, 64*mib))
	cfg := vm.Config{CPUs: 1, Devices: s.devices(), Reboot: true}
	g := boot(t, cfg)
	vda := suite.Image(g.sh, "vda", disk)
	kept := vda.Keep(t)
	vda.Load(t)
	g.tell(t, "reboot -f")
	g.up(t)
	assert.Equal(t, kept, vda.Kept(t), "after a reboot")
	vda.Load(t)
	_, err = g.QMP(t.Context(), "system_reset", nil)
	require.NoError(t, err)
	g.up(t)
	assert.Equal(t, kept, vda.Kept(t), "after a reset")
	g.quiet(t)
	vda.Load(t)
	g.Kill()
	_, err = g.Wait()
	require.Error(t, err, "a guest that is killed has not ended well")
	g = boot(t, cfg)
	vda = suite.Image(g.sh, "vda", disk)
	assert.Equal(t, kept, vda.Kept(t), "after a guest that was killed")
	g.powerOff(t)
	s.stop(t)
}

// TestVMTrapFreeFirmware has every firmware boot from one server's disk, one
// after the other, and stock kernels of two machines in between.
func TestVMTrapFreeFirmware(t *testing.T) {
	parallel(t, 1)
	const text = "read by the firmware"
	disk := image(t, "disk.img", 64*mib)
	boots, err := vm.BootImage(text, nil)
	require.NoError(t, err)
	require.Less(t, len(boots), 40*mib)
	patch(t, disk, 0, boots)
	s := serveTrapFree(t, disk+",serial=FIRMWARE")
	for _, m := range []struct {
		name     string
		kernel   vm.Kernel
		firmware vm.Firmware
	}{
		{"SeaBIOS", vm.Kernel{}, vm.DefaultFirmware},
		{"OVMF", vm.Kernel{}, vm.EDK2},
		{"edk2 on arm64", vm.ARM64(), vm.EDK2},
		{"U-Boot on arm64", vm.ARM64(), vm.UBoot},
	} {
		t.Run(m.name, func(t *testing.T) {
			_, err := vm.Run(t.Context(), vm.Config{
				Kernel: m.kernel, Firmware: m.firmware, BootDisk: true, Until: text, Timeout: guestTime,
				Devices: []string{vm.VFIOUser(s.exports[0].Socket, vm.BootIndex(0))},
			})
			require.NoError(t, err)
			s.alive(t)
			g := boot(t, vm.Config{Kernel: m.kernel, Devices: s.devices()})
			g.sh(t, `
				[ $(cat /sys/block/vda/serial) = FIRMWARE ]
				fio --name=after --filename=/dev/vda --offset=40m --size=8m --direct=1 --rw=randrw --bsrange=4k-64k \
					--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1
			`)
			g.powerOff(t)
		})
	}
	s.stop(t)
}
