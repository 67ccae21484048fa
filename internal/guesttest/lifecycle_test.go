package guesttest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// load keeps vda busy, above its first 32 MiB, until it is killed. It returns
// when requests are on their way.
const load = `
	fio --name=load --filename=/dev/vda --direct=1 --rw=randrw --bsrange=4k-64k --offset=32m --size=32m \
		--ioengine=libaio --iodepth=32 --numjobs=2 --time_based --runtime=1000 >/tmp/load 2>&1 &
	busy() { [ "$(awk '{ print ($9 > 0) }' /sys/block/vda/stat)" = 1 ]; }
	within 20 busy
`

// pattern writes data to the first 8 MiB of vda, and durably; verify reads it,
// from the disk. Both print its checksum.
const (
	pattern = `
		dd if=/dev/urandom of=/tmp/pattern bs=1M count=8 status=none
		dd if=/tmp/pattern of=/dev/vda bs=64k oflag=direct conv=fsync status=none
		sha256sum </tmp/pattern
		rm /tmp/pattern
	`
	verify = `dd if=/dev/vda bs=64k count=128 iflag=direct status=none | sha256sum`
)

// TestVMRebind takes the device from its driver in the middle of I/O, and gives
// it back, twenty times in turn by virtio_blk and by virtio-pci.
func TestVMRebind(t *testing.T) {
	eachKernel(t, func(t *testing.T, k vm.Kernel) {
		disk := image(t, "disk.img", 64*mib)
		s := serve(t, checked, disk+",queues=2")
		g := boot(t, vm.Config{Kernel: k, Devices: s.devices()})
		g.trouble = true // requests that are cut off are I/O errors to the guest
		sum := g.sh(t, pattern)
		round := func(i int) {
			driver, device := "/sys/bus/virtio/drivers/virtio_blk", "$(virtio vda)"
			if i%2 == 1 {
				driver, device = "/sys/bus/pci/drivers/virtio-pci", "$(basename $(pci vda))"
			}
			g.sh(t, load+fmt.Sprintf(`
				device=%[2]s
				echo $device >%[1]s/unbind
				within 20 test ! -e /sys/block/vda
				killall -q fio || true
				within 20 sh -c '! pidof fio >/dev/null'
				echo $device >%[1]s/bind
				within 20 test -b /dev/vda
				[ "$(cat /sys/block/vda/device/status)" = 0x0000000f ]
			`, driver, device))
			assert.Equal(t, sum, g.sh(t, verify), "round %d", i)
		}
		round(0)
		round(1)
		open := s.descriptors(t)
		for i := 2; i < 20; i++ {
			round(i)
		}
		assert.Len(t, s.descriptors(t), len(open), "descriptors after 20 rounds; after 2 there were %v", open)
		g.sh(t, `
			fio --name=after --filename=/dev/vda --direct=1 --rw=randrw --bsrange=4k-64k --offset=32m --size=32m \
				--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1
		`)
		g.powerOff(t)
		s.stop(t)
	})
}

// TestVMRestarts has one server outlive its guests: one that reboots itself, is
// reset from outside and is killed, each in the middle of I/O, and those after it.
func TestVMRestarts(t *testing.T) {
	parallel(t, 1)
	disk := image(t, "disk.img", 64*mib)
	fresh := serve(t, checked, image(t, "fresh.img", 64*mib)+",queues=2")
	s := serve(t, checked, disk+",queues=2")
	cfg := vm.Config{CPUs: 1, Devices: s.devices(), Reboot: true}

	g := boot(t, cfg)
	sum := g.sh(t, pattern)
	g.sh(t, load)
	g.tell(t, "reboot -f")
	g.up(t)
	assert.Equal(t, sum, g.sh(t, verify), "after a reboot")
	for range 3 {
		g.sh(t, load)
		_, err := g.QMP(t.Context(), "system_reset", nil)
		require.NoError(t, err)
		g.up(t)
		assert.Equal(t, sum, g.sh(t, verify), "after a reset")
	}
	g.quiet(t)
	for range 3 {
		g.sh(t, load)
		g.Kill()
		_, err := g.Wait()
		require.Error(t, err, "a guest that is killed has not ended well")
		s.alive(t)
		g = boot(t, cfg)
		assert.Equal(t, sum, g.sh(t, verify), "after a guest that was killed")
	}
	g.powerOff(t)

	assert.True(t, settles(5*time.Second, func() bool { return len(s.descriptors(t)) <= s.idle }),
		"before the first guest, %d descriptors; after the last: %v", s.idle, s.descriptors(t))
	assert.Empty(t, s.complaints())
	want := fresh.goroutines(t)
	require.NotEmpty(t, want)
	assert.Equal(t, want, s.goroutines(t), "goroutines, compared with a server that never had a guest")
}

// TestVMStop stops the server in the middle of I/O. What was flushed is on the
// disk, and the guest's machine goes on without it.
func TestVMStop(t *testing.T) {
	parallel(t, 1)
	disk := image(t, "disk.img", 64*mib)
	s := serve(t, checked, disk+",queues=2")
	g := boot(t, vm.Config{Devices: s.devices()})
	g.sh(t, load)
	// Each block says which one it is, and is announced when its flush is done.
	g.tell(t, `
		i=0
		while printf 'block %08d\n' $i | dd of=/dev/vda bs=4k seek=$i conv=sync,fsync oflag=direct status=none; do
			say $i
			i=$((i + 1))
		done
	`)
	last := -1
	hear := func(limit time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		word, err := g.Hear(ctx)
		if err != nil {
			return false
		}
		n, err := strconv.Atoi(word)
		require.NoError(t, err)
		require.Equal(t, last+1, n)
		last = n
		return true
	}
	for last < 50 {
		require.True(t, hear(time.Minute))
	}
	s.signal(t, unix.SIGTERM)
	s.wait(t)
	for hear(2 * time.Second) {
	}
	t.Logf("%d blocks were flushed", last+1)
	for i := range last + 1 {
		want := fmt.Sprintf("block %08d\n", i)
		require.Equal(t, want, string(content(t, disk, int64(i)*4096, int64(len(want)))))
	}

	status, err := g.QMP(t.Context(), "query-status", nil)
	require.NoError(t, err, "QEMU is alive")
	assert.Contains(t, string(status), `"running": true`)
	select {
	case <-g.gone:
		res, err := g.Wait()
		require.Fail(t, "the guest's machine ended", "%v\n%s", err, res.QEMU)
	default:
	}
	g.Kill()
	res, _ := g.Wait()
	assert.NotContains(t, strings.ToLower(res.QEMU), "assert")
}
