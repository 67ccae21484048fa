package suite

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Files are files of a file system: a line for each, with its checksum and name.
type Files string

// sums lists the files of the folder, by the same names in the same order everywhere.
const sums = "find . -type f | LC_ALL=C sort | xargs sha256sum"

// Fill makes an ext4 on the disk, of files of many sizes, some of them sparse, reserved
// or removed, and returns what is in it. The disk has at least 64 MiB.
func (d Disk) Fill(t *testing.T) Files {
	t.Helper()
	return Files(d.sh(t, `
		mkfs.ext4 -q -F /dev/$d >&2
		mount -t ext4 /dev/$d /mnt
		for n in 1 2 3 4 5 6 7 8; do
			mkdir -p /mnt/tree/$n/deep/er
			for f in 1 2 3 4 5; do
				dd if=/dev/urandom of=/mnt/tree/$n/deep/er/$f bs=$((n * f * 997)) count=$f status=none
			done
			ln -s deep/er/1 /mnt/tree/$n/link
		done
		dd if=/dev/urandom of=/mnt/tree/large bs=1M count=24 status=none
		fallocate -l 8M /mnt/tree/reserved
		dd if=/dev/urandom of=/mnt/tree/sparse bs=1M count=1 seek=20 status=none
		rm -r /mnt/tree/8
		cd /mnt/tree
		`+sums+` >/tmp/sums
		cd /
		umount /mnt
		e2fsck -fn /dev/$d >/tmp/e2fsck 2>&1 || { cat /tmp/e2fsck; exit 1; }
		mount -t ext4 /dev/$d /mnt # the page cache knows nothing of it any more
		cd /mnt/tree
		sha256sum -c /tmp/sums >/tmp/check || { cat /tmp/check; exit 1; }
		cd /
		fstrim /mnt
		umount /mnt
		cat /tmp/sums
	`))
}

// Check looks for the files behind the server, which must be gone, without the host.
func (f Files) Check(t *testing.T, d Disk) {
	t.Helper()
	assert.Equal(t, 7*5+3, len(strings.Split(string(f), "\n")), "%s", f)
	assert.Equal(t, string(f), d.behind(t, `
		tmp=$(mktemp -d)
		e2fsck -fn "$back" >$tmp/e2fsck 2>&1 || { cat $tmp/e2fsck; exit 1; }
		mkdir $tmp/mnt
		options=ro
		[ -b "$back" ] || options=ro,loop
		mount -t ext4 -o $options "$back" $tmp/mnt
		trap 'cd /; umount $tmp/mnt; rm -r $tmp' EXIT
		cd $tmp/mnt/tree
		`+sums+"\n"))
}
