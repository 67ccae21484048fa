package guesttest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// What a driver may be offered at most in one discard and one write-zeroes
// request, for files.
const (
	maxDiscard = 1 << 30
	maxZeroes  = 32 << 20
)

// show prints what the guest's kernel made of a disk, as NAME=VALUE.
const show = `
	d=%s; q=/sys/block/$d/queue; p=$(pci $d)
	echo driver=$(basename $(readlink /sys/block/$d/device/driver))
	echo pci_driver=$(basename $(readlink $p/driver))
	for f in vendor device revision class subsystem_vendor subsystem_device; do
		echo $f=$(cat $p/$f)
	done
	echo vectors=$(ls $p/msi_irqs | wc -l)
	for f in features status; do
		echo $f=$(cat /sys/block/$d/device/$f)
	done
	for f in size ro serial cache_type; do
		echo $f=$(cat /sys/block/$d/$f)
	done
	for f in logical_block_size physical_block_size minimum_io_size optimal_io_size \
		discard_granularity discard_max_bytes write_zeroes_max_bytes write_cache max_segments; do
		echo $f=$(cat $q/$f)
	done
	echo queues=$(ls /sys/block/$d/mq | wc -l)
	echo depth=$(cat /sys/block/$d/mq/0/nr_tags)
	lsblk -b -d -P -o SIZE,RO,DISC-GRAN,DISC-MAX,LOG-SEC,PHY-SEC,MIN-IO,OPT-IO /dev/$d |
		sed 's/" /\n/g; s/"//g' | sed 's/^/lsblk_/'
`

// Feature bits, by the names of the specification (virtio 1.4 §5.2.3, §6).
const (
	segMax, readOnly, blkSize, flush, topology, configWCE, mq, discard, writeZeroes = 2, 5, 6, 9, 10, 11, 12, 13, 14

	indirectDesc, eventIdx, version1, accessPlatform, orderPlatform, ringReset = 28, 29, 32, 33, 36, 40
)

// with returns the features that stock drivers accept of every disk, and more,
// as bits has them.
func with(more ...int) string {
	set := append([]int{
		segMax, blkSize, flush, topology, configWCE,
		indirectDesc, eventIdx, version1, accessPlatform, orderPlatform, ringReset,
	}, more...)
	slices.Sort(set)
	return fmt.Sprint(set)
}

// bits lists the numbers of the ones in what sysfs shows of the features.
func bits(features string) string {
	var set []int
	for i, c := range features {
		if c == '1' {
			set = append(set, i)
		}
	}
	return fmt.Sprint(set)
}

// expected is what show has to print for a disk with the options that differ
// from the usual. unit is the block size of the file system that holds the image.
func expected(size, unit int64, differ map[string]string) map[string]string {
	want := map[string]string{
		"driver": "virtio_blk", "pci_driver": "virtio-pci",
		"vendor": "0x1af4", "device": "0x1042", "revision": "0x01", "class": "0x018000",
		"subsystem_vendor": "0x1af4", "subsystem_device": "0x1042",
		"vectors": "2", "features": with(discard, writeZeroes), "status": "0x0000000f",
		"size": fmt.Sprint(size / 512), "ro": "0",
		"logical_block_size": "512", "physical_block_size": fmt.Sprint(unit),
		"minimum_io_size": fmt.Sprint(unit), "optimal_io_size": "0",
		"discard_granularity": fmt.Sprint(unit), "discard_max_bytes": fmt.Sprint(maxDiscard),
		"write_zeroes_max_bytes": fmt.Sprint(maxZeroes),
		"write_cache":            "write back", "cache_type": "write back",
		"max_segments": "254", "queues": "1", "depth": "256",
	}
	maps.Copy(want, differ)
	for column, value := range map[string]string{
		"SIZE": fmt.Sprint(size), "RO": want["ro"],
		"DISC-GRAN": want["discard_granularity"], "DISC-MAX": want["discard_max_bytes"],
		"LOG-SEC": want["logical_block_size"], "PHY-SEC": want["physical_block_size"],
		"MIN-IO": want["minimum_io_size"], "OPT-IO": want["optimal_io_size"],
	} {
		want["lsblk_"+column] = value
	}
	return want
}

// shown returns what the guest's kernel made of a disk.
func shown(t *testing.T, g *guest, disk string) map[string]string {
	t.Helper()
	got := fields(g.sh(t, fmt.Sprintf(show, disk)))
	got["features"] = bits(got["features"])
	return got
}

// TestVMProbe shows that stock drivers find what was configured, on several
// devices at a time, that a disk which is read-only stays as it is, and that a
// new size is seen.
func TestVMProbe(t *testing.T) {
	eachKernel(t, func(t *testing.T, k vm.Kernel) {
		const size = 96 * mib
		disks := []struct {
			options string
			differ  map[string]string
		}{
			{"", map[string]string{}},
			{"readonly,serial=LOCKED,queues=2,queue-size=64", map[string]string{
				"serial": "LOCKED", "ro": "1", "queues": "2", "vectors": "3", "depth": "64", "max_segments": "62",
				"discard_granularity": "0", "discard_max_bytes": "0", "write_zeroes_max_bytes": "0",
				"features": with(readOnly, mq),
			}},
			{"cache=writethrough,serial=THROUGH,queue-size=1024", map[string]string{
				"serial": "THROUGH", "depth": "1024", "write_cache": "write through", "cache_type": "write through",
			}},
			{"block-size=4K,serial=twenty-characters-00,queues=4,queue-size=128", map[string]string{
				"serial": "twenty-characters-00", "logical_block_size": "4096", "physical_block_size": "4096",
				"queues": "4", "vectors": "5", "depth": "128", "max_segments": "126",
				"features": with(mq, discard, writeZeroes),
			}},
		}
		var images, args []string
		for i, d := range disks {
			images = append(images, image(t, fmt.Sprintf("disk%d.img", i), size))
			args = append(args, strings.TrimSuffix(images[i]+","+d.options, ","))
		}
		patch(t, images[1], 0, []byte("not to be overwritten"))
		locked := digest(t, images[1])
		var fs unix.Stat_t
		require.NoError(t, unix.Stat(images[0], &fs))

		s := serve(t, checked, args...)
		g := boot(t, vm.Config{Kernel: k, CPUs: 4, Devices: s.devices()})
		for i, d := range disks {
			t.Run("values/"+d.options, func(t *testing.T) {
				want := expected(size, int64(fs.Blksize), d.differ)
				if want["serial"] == "" {
					want["serial"] = s.exports[i].Serial
				}
				assert.Equal(t, want, shown(t, g, "vd"+string(rune('a'+i))))
			})
		}
		t.Run("read-only", func(t *testing.T) {
			out := g.sh(t, `
				blockdev --setrw /dev/vdb
				for c in "dd if=/dev/zero of=/dev/vdb bs=4k count=4 oflag=direct" "blkdiscard -f /dev/vdb" \
					"blkdiscard -f -z /dev/vdb" "mkfs.ext4 -q -F /dev/vdb"; do
					if $c; then echo "not refused: $c"; exit 1; fi
				done
				dd if=/dev/vdb bs=21 count=1 status=none
			`)
			assert.Contains(t, out, "not to be overwritten", "it can be read")
			assert.Equal(t, locked, digest(t, images[1]), "the image is what it was")
		})
		t.Run("resize", func(t *testing.T) { resize(t, s, g, images[0], size) })
		g.powerOff(t)
		s.stop(t)
		assert.Equal(t, locked, digest(t, images[1]), "the image is what it was")
	})
}

// hangups is how often the server is told to look at the size of a disk.
const hangups = 6

// resize changes the size of the image of vda, with a file system on it.
func resize(t *testing.T, s *server, g *guest, image string, size int64) {
	g.sh(t, "mkfs.ext4 -q -b 4096 /dev/vda; mount /dev/vda /mnt; echo before >/mnt/file")
	seen := func(bytes int64) string {
		return fmt.Sprintf("within 20 sh -c '[ $(lsblk -b -d -n -o SIZE /dev/vda) = %d ]'\n", bytes)
	}
	size *= 2
	require.NoError(t, unix.Truncate(image, size))
	g.sh(t, seen(size)) // without being told
	// On SIGHUP at once: one look a second would take longer to see all of these.
	begin := time.Now()
	for range hangups {
		size += mib
		require.NoError(t, unix.Truncate(image, size))
		s.signal(t, unix.SIGHUP)
		noticed := fmt.Sprintf("bytes=%d\n", size)
		require.True(t, settles(5*time.Second, func() bool { return strings.Contains(s.log.String(), noticed) }))
	}
	assert.Less(t, time.Since(begin), (hangups-1)*time.Second)
	size *= 2
	require.NoError(t, unix.Truncate(image, size))
	s.signal(t, unix.SIGHUP)
	out := g.sh(t, seen(size)+`
		resize2fs /dev/vda
		dd if=/dev/urandom of=/mnt/large bs=1M count=150 status=none
		cat /mnt/file
		umount /mnt
		e2fsck -fn /dev/vda
	`)
	assert.Contains(t, out, "before")
	run(t, "e2fsck", "-fn", image)
	assert.Regexp(t, fmt.Sprintf(`Block count: +%d\s`, size/4096), run(t, "dumpe2fs", "-h", image))

	size /= 4 << 20
	size <<= 20
	require.NoError(t, unix.Truncate(image, size))
	g.sh(t, seen(size)+`
		dd if=/dev/vda of=/dev/null bs=1M iflag=direct status=none
		if dd if=/dev/zero of=/dev/vda bs=512 count=1 seek=$(cat /sys/block/vda/size) oflag=direct; then exit 1; fi
	`)
}
