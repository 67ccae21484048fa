package suite

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Sized waits until the host sees this many bytes.
func (d Disk) Sized(t *testing.T, bytes int64) {
	t.Helper()
	d.sh(t, fmt.Sprintf("within 180 sh -c \"[ \\$(lsblk -b -d -n -o SIZE /dev/$d) = %d ]\"", bytes))
}

// Grow has a file system in use grow with its disk. resize changes the disk behind the
// server, and nobody is told.
func (d Disk) Grow(t *testing.T, from, to int64, resize func(bytes int64)) {
	t.Helper()
	d.sh(t, "mkfs.ext4 -q -F -b 4096 /dev/$d; mount -t ext4 /dev/$d /mnt; echo before >/mnt/file")
	resize(to)
	d.Sized(t, to)
	assert.Contains(t, d.sh(t, fmt.Sprintf(`
		resize2fs /dev/$d
		fallocate -l %d /mnt/reserved # as much as there was
		dd if=/dev/urandom of=/mnt/more bs=1M count=4 status=none
		cat /mnt/file
		umount /mnt
		e2fsck -fn /dev/$d
	`, from)), "before")
	assert.Regexp(t, fmt.Sprintf(`Block count: +%d\s`, to/4096), d.behind(t, `
		e2fsck -fn "$back" >&2
		dumpe2fs -h "$back" 2>/dev/null
	`))
}

// ReadOnly tries to write to a disk that is served read-only, after the host's kernel
// has been told that it may. The disk stays as it is, and can be read.
func (d Disk) ReadOnly(t *testing.T) {
	t.Helper()
	before := d.Digest(t)
	d.sh(t, `
		[ $(blockdev --getro /dev/$d) = 1 ]
		blockdev --setrw /dev/$d
		for c in "dd if=/dev/zero of=/dev/$d bs=4k count=4 oflag=direct" "blkdiscard -f /dev/$d" \
			"blkdiscard -f -z /dev/$d" "mkfs.ext4 -q -F /dev/$d"; do
			if $c; then echo "not refused: $c"; exit 1; fi
		done
	`)
	assert.Equal(t, before, d.Digest(t), "the disk is what it was")
	d.Agrees(t)
}
