package suite

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Load keeps the disk busy, above its first 32 MiB and up to 64, until it is killed or
// the disk is gone. It returns when requests are on their way.
func (d Disk) Load(t *testing.T) {
	t.Helper()
	d.sh(t, load)
}

const load = `
	fio --name=load --filename=/dev/$d --direct=1 --rw=randrw --bsrange=4k-64k --offset=32m --size=32m \
		--ioengine=libaio --iodepth=32 --numjobs=2 --time_based --runtime=1000 >/tmp/load 2>&1 &
	busy() { [ "$(awk '{ print ($9 > 0) }' /sys/block/$d/stat)" = 1 ]; }
	within 180 busy
`

// Keep writes data to the first 8 MiB of the disk, and durably; Kept reads it, from the
// disk. Both return its checksum.
func (d Disk) Keep(t *testing.T) string {
	t.Helper()
	return strings.Fields(d.sh(t, `
		dd if=/dev/urandom of=/tmp/pattern bs=1M count=8 status=none
		dd if=/tmp/pattern of=/dev/$d bs=64k oflag=direct conv=fsync status=none
		sha256sum </tmp/pattern
		rm /tmp/pattern
	`))[0]
}

// Kept returns the checksum of what Keep has written.
func (d Disk) Kept(t *testing.T) string {
	t.Helper()
	return strings.Fields(d.sh(t, `dd if=/dev/$d bs=64k count=128 iflag=direct status=none | sha256sum`))[0]
}

// Verified does verified I/O above the first 32 MiB.
func (d Disk) Verified(t *testing.T) {
	t.Helper()
	d.sh(t, `
		fio --name=after --filename=/dev/$d --direct=1 --rw=randrw --bsrange=4k-64k --offset=32m --size=16m \
			--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1
	`)
}

// Rebind takes the device from its driver in the middle of I/O, and gives it back, in
// the rounds from and up to to, in turn by virtio_blk and by virtio-pci. What Keep has
// written must stay.
func (d Disk) Rebind(t *testing.T, kept string, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		driver, device := "/sys/bus/virtio/drivers/virtio_blk", "$(virtio $d)"
		if i%2 == 1 {
			driver, device = "/sys/bus/pci/drivers/virtio-pci", "$(basename $(pci $d))"
		}
		d.sh(t, load+fmt.Sprintf(`
			device=%[2]s
			echo $device >%[1]s/unbind
			within 180 test ! -e /sys/block/$d
			killall -q fio || true
			within 180 sh -c '! pidof fio >/dev/null'
			echo $device >%[1]s/bind
			within 180 test -b /dev/$d
			[ "$(cat /sys/block/$d/device/status)" = 0x0000000f ]
		`, driver, device))
		assert.Equal(t, kept, d.Kept(t), "round %d", i)
	}
}

// Reload unloads the driver's module and loads it again, so many times. All disks of
// the host that are the driver's go and come back; if there are several, maybe by other
// names, so Serial must be set.
func (d Disk) Reload(t *testing.T, kept string, rounds int) {
	t.Helper()
	for range rounds {
		d.sh(t, `
			[ -d /sys/module/virtio_blk/holders ] # it is a module
			n=$(ls -d /sys/block/vd* | wc -l)
			rmmod virtio_blk
			[ ! -e /sys/module/virtio_blk ]
			[ $(ls /sys/block | grep -c '^vd') = 0 ]
			modprobe virtio_blk
			back() { [ $(ls /dev | grep -c '^vd[a-z]$') = $n ]; }
			within 180 back
		`)
		require.Equal(t, kept, d.Kept(t))
	}
}
