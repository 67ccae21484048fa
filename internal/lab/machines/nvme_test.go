package machines

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// nvme starts a pair whose endpoint is the kernel's NVMe target with a disk of
// its own, and waits for the root complex's stock driver to find it.
func nvme(t *testing.T) *rig { t.Helper(); return nvmeWith(t, func(*Config) {}) }

func nvmeWith(t *testing.T, edit func(*Config)) *rig {
	t.Helper()
	r := start(t, "newest", func(c *Config) {
		require.NoError(t, c.AddDisk(t.TempDir()))
		edit(c)
	})
	r.ep("sh epf-nvme start /dev/vda")
	r.rc("within 180 test -b /dev/nvme0n1")
	return r
}

func TestVMNVMeTarget(t *testing.T) {
	r := nvme(t)
	t.Log(r.rc(`
		lspci -nn -s 1:
		grep nvme /proc/interrupts
		cat /sys/block/nvme0n1/size
		mkfs.ext4 -q /dev/nvme0n1
		mount -t ext4 /dev/nvme0n1 /mnt
		dd if=/dev/urandom of=/mnt/file bs=1M count=32 status=none
		sum=$(sha256sum </mnt/file)
		umount /mnt
		e2fsck -f -n /dev/nvme0n1
		echo 3 >/proc/sys/vm/drop_caches
		mount -t ext4 /dev/nvme0n1 /mnt
		[ "$sum" = "$(sha256sum </mnt/file)" ]
		umount /mnt
		fio --name=v --filename=/dev/nvme0n1 --rw=randrw --bsrange=4k-256k --size=64m \
			--ioengine=io_uring --iodepth=16 --direct=1 --verify=crc32c --randseed=1 --minimal >/dev/null
	`))
}
