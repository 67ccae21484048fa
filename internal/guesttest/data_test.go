package guesttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// TestVMData shows that what a guest writes is what it reads, and what the disk
// holds outside: with a file system, with verified random I/O on several queues,
// with discard and zeroing, and with flushes.
func TestVMData(t *testing.T) {
	eachKernel(t, func(t *testing.T, k vm.Kernel) {
		files, raw := image(t, "files.img", 256*mib), image(t, "raw.img", 128*mib)
		back := blktest.Loop(t, image(t, "back.img", 16*mib), blktest.LoopOptions{})
		through := blktest.Loop(t, image(t, "through.img", 16*mib), blktest.LoopOptions{})
		s := serve(t, checked, files, raw+",queues=4", back, through+",cache=writethrough")
		g := boot(t, vm.Config{Kernel: k, CPUs: 4, Devices: s.devices()})

		var sums string
		t.Run("file system", func(t *testing.T) { sums = fileSystem(t, g) })
		t.Run("random", func(t *testing.T) { random(t, g) })
		t.Run("discard", func(t *testing.T) { discards(t, g, raw) })
		t.Run("flush", func(t *testing.T) { flushing(t, g, back) })
		t.Run("write-through", func(t *testing.T) { writeThrough(t, g, through) })
		g.powerOff(t)
		s.stop(t)
		t.Run("file system outside", func(t *testing.T) { checkFiles(t, files, sums) })
	})
}

// fileSystem fills an ext4 on vda, and returns the checksums of its files.
func fileSystem(t *testing.T, g *guest) (sums string) {
	t.Helper()
	return g.sh(t, `
		mkfs.ext4 -q /dev/vda >&2
		mount /dev/vda /mnt
		for d in 1 2 3 4 5 6 7 8; do
			mkdir -p /mnt/tree/$d/deep/er
			for f in 1 2 3 4 5; do
				dd if=/dev/urandom of=/mnt/tree/$d/deep/er/$f bs=$((d * f * 997)) count=$f status=none
			done
			ln -s deep/er/1 /mnt/tree/$d/link
		done
		dd if=/dev/urandom of=/mnt/tree/large bs=1M count=24 status=none
		fallocate -l 8M /mnt/tree/reserved
		dd if=/dev/urandom of=/mnt/tree/sparse bs=1M count=1 seek=20 status=none
		rm -r /mnt/tree/8
		cd /mnt/tree
		find . -type f | sort | xargs sha256sum >/tmp/sums
		cd /
		umount /mnt
		e2fsck -fn /dev/vda >/tmp/e2fsck 2>&1 || { cat /tmp/e2fsck; exit 1; }
		mount /dev/vda /mnt # the page cache knows nothing of it any more
		cd /mnt/tree
		sha256sum -c /tmp/sums >/tmp/check || { cat /tmp/check; exit 1; }
		cd /
		fstrim /mnt
		umount /mnt
		cat /tmp/sums
	`)
}

// checkFiles looks for the files in the image, without the guest.
func checkFiles(t *testing.T, image, sums string) {
	run(t, "e2fsck", "-fn", image)
	dir := t.TempDir()
	run(t, "debugfs", "-R", "rdump /tree "+dir, image)
	list := filepath.Join(t.TempDir(), "sums")
	require.NoError(t, os.WriteFile(list, []byte(sums+"\n"), 0o600))
	check := exec.Command("sha256sum", "--check", "--strict", list)
	check.Dir = filepath.Join(dir, "tree")
	out, err := check.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, 7*5+3, strings.Count(string(out), ": OK"), "%s", out)
}

// random does verified I/O of mixed sizes on vdb, from all processors, and
// looks at the interrupts of each queue.
func random(t *testing.T, g *guest) {
	before := interrupts(t, g, "vdb")
	require.Len(t, before, 4)
	g.sh(t, `
		common="--filename=/dev/vdb --direct=1 --group_reporting --verify=crc32c --verify_fatal=1
			--verify_backlog=64 --cpus_allowed=0-3 --cpus_allowed_policy=split"
		fio $common --name=mixed --rw=randrw --bsrange=4k-256k --numjobs=4 --size=16m --offset_increment=16m \
			--ioengine=libaio --iodepth=16
		fio $common --name=small --rw=randwrite --bssplit=512/50:1536/30:4k/20 --numjobs=4 --size=1m \
			--offset=64m --offset_increment=1m --ioengine=libaio --iodepth=32
		fio $common --name=uring --rw=randrw --bsrange=4k-64k --numjobs=4 --size=8m \
			--offset=72m --offset_increment=8m --ioengine=io_uring --iodepth=64
		fio --name=cached --filename=/dev/vdb --rw=randrw --bsrange=4k-128k --size=16m --offset=108m \
			--ioengine=psync --fdatasync=16 --verify=crc32c --verify_fatal=1
	`)
	for queue, n := range interrupts(t, g, "vdb") {
		assert.Greater(t, n, before[queue], "interrupts of %s", queue)
	}
}

var interruptLine = regexp.MustCompile(`(?m)^ *\d+:((?: +\d+)+) .*\b(virtio\d+-req\.\d+)`)

// interrupts returns how often each queue of a disk has interrupted.
func interrupts(t *testing.T, g *guest, disk string) map[string]int {
	t.Helper()
	prefix := g.value(t, "virtio "+disk) + "-"
	counts := make(map[string]int)
	for _, m := range interruptLine.FindAllStringSubmatch(g.sh(t, "cat /proc/interrupts"), -1) {
		if !strings.HasPrefix(m[2], prefix) {
			continue
		}
		for count := range strings.FieldsSeq(m[1]) {
			n, err := strconv.Atoi(count)
			require.NoError(t, err)
			counts[m[2]] += n
		}
	}
	return counts
}

// discards discards and zeroes parts of vdb and looks at the image.
func discards(t *testing.T, g *guest, image string) {
	const part = 16 * mib
	g.sh(t, "fill vdb 128 0; sync")
	full := allocated(t, image)
	require.GreaterOrEqual(t, full, int64(128*mib))
	for i, c := range []string{
		"blkdiscard -o %d -l %d /dev/vdb",
		"blkdiscard -z -o %d -l %d /dev/vdb",
		"fallocate -p -o %d -l %d /dev/vdb",
	} {
		at := int64(2*i+1) * part
		g.sh(t, fmt.Sprintf(c+`
			dd if=/dev/vdb bs=1M skip=%d count=%d iflag=direct status=none | tr -d '\0' | wc -c | grep -qx 0
		`, at, part, at/mib, part/mib))
		assert.True(t, all(t, image, at, part, 0), "%s: zero outside", c)
		assert.True(t, all(t, image, at-part, part, 0xaa), "%s: nothing before it", c)
		assert.True(t, all(t, image, at+part, part, 0xaa), "%s: nothing behind it", c)
	}
	assert.True(t, hole(t, image, part, part), "what was discarded is a hole")
	assert.True(t, hole(t, image, 5*part, part), "what was zeroed and may be given back is a hole")
	assert.InDelta(t, full-2*part, allocated(t, image), mib, "what was zeroed without that is not")

	g.sh(t, "blkdiscard -f /dev/vdb")
	assert.True(t, hole(t, image, 0, 128*mib), "all is discarded")
	assert.Less(t, allocated(t, image), int64(mib))
}

const writes = 16 // of 4 KiB, one after the other

var (
	plainWrites  = fmt.Sprintf("dd if=/dev/zero of=/dev/%%s bs=4k count=%d oflag=direct status=none", writes)
	syncedWrites = fmt.Sprintf("for i in $(seq %d); do dd if=/dev/zero of=/dev/%%s bs=4k count=1 seek=$i oflag=direct conv=fsync status=none; done", writes)
)

// flushesOf returns how many flushes the disk outside sees of a script.
func flushesOf(t *testing.T, g *guest, disk, script string) int {
	t.Helper()
	before := flushes(t, disk)
	g.sh(t, script)
	return flushes(t, disk) - before
}

// flushing watches the flushes that arrive at the disk behind vdc.
func flushing(t *testing.T, g *guest, disk string) {
	plain, synced := fmt.Sprintf(plainWrites, "vdc"), fmt.Sprintf(syncedWrites, "vdc")
	assert.Zero(t, flushesOf(t, g, disk, plain), "the cache holds what nobody flushes")
	assert.Equal(t, writes, flushesOf(t, g, disk, synced), "each flush of the guest is one of the disk")

	g.sh(t, "echo write through >/sys/block/vdc/cache_type")
	assert.Equal(t, "write through", g.value(t, "cat /sys/block/vdc/queue/write_cache"))
	assert.GreaterOrEqual(t, flushesOf(t, g, disk, plain), writes, "without a cache, each write is durable")
	g.sh(t, "echo write back >/sys/block/vdc/cache_type")
	assert.Equal(t, "write back", g.value(t, "cat /sys/block/vdc/queue/write_cache"))
	assert.Zero(t, flushesOf(t, g, disk, plain))
	before := flushes(t, disk)
	g.sh(t, "echo write through >/sys/block/vdc/cache_type")
	assert.True(t, settles(10*time.Second, func() bool { return flushes(t, disk) > before }),
		"the cache is flushed when it is turned off, though the driver does not wait for it")
}

// writeThrough watches the disk behind vdd, which is served without a cache.
func writeThrough(t *testing.T, g *guest, disk string) {
	plain := fmt.Sprintf(plainWrites, "vdd")
	assert.Equal(t, "write through", g.value(t, "cat /sys/block/vdd/queue/write_cache"))
	assert.GreaterOrEqual(t, flushesOf(t, g, disk, plain), writes, "each write is durable")
	g.sh(t, "echo write back >/sys/block/vdd/cache_type")
	assert.Zero(t, flushesOf(t, g, disk, plain), "the driver has turned the cache on")
}
