package guesttest

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// What a driver may be offered at most in one discard and one write-zeroes
// request, for files.
const (
	maxDiscard = 1 << 30
	maxZeroes  = 32 << 20
)

// with returns the features that stock drivers accept of every disk, and more.
func with(more ...int) string {
	return suite.Features(append([]int{
		suite.SegMax, suite.BlkSize, suite.Flush, suite.Topology, suite.ConfigWCE,
		suite.IndirectDesc, suite.EventIdx, suite.Version1, suite.AccessPlatform, suite.OrderPlatform, suite.RingReset,
	}, more...)...)
}

// expected is what a guest has to make of a disk with the options that differ
// from the usual. unit is the block size of the file system that holds the image.
func expected(size, unit int64, differ suite.Values) suite.Values {
	want := suite.Values{
		"driver": "virtio_blk", "pci_driver": "virtio-pci",
		"vendor": "0x1af4", "device": "0x1042", "revision": "0x01", "class": "0x018000",
		"subsystem_vendor": "0x1af4", "subsystem_device": "0x1042",
		"vectors": "2", "features": with(suite.Discard, suite.WriteZeroes), "status": "0x0000000f",
		"size": fmt.Sprint(size / 512), "ro": "0",
		"logical_block_size": "512", "physical_block_size": fmt.Sprint(unit),
		"minimum_io_size": fmt.Sprint(unit), "optimal_io_size": "0",
		"discard_granularity": fmt.Sprint(unit), "discard_max_bytes": fmt.Sprint(maxDiscard),
		"write_zeroes_max_bytes": fmt.Sprint(maxZeroes),
		"write_cache":            "write back", "cache_type": "write back",
		"max_segments": "254", "queues": "1", "depth": "256",
	}
	maps.Copy(want, differ)
	return want
}

// TestVMProbe shows that stock drivers find what was configured, on several
// devices at a time, that a disk which is read-only stays as it is, and that a
// new size is seen.
func TestVMProbe(t *testing.T) {
	eachKernel(t, func(t *testing.T, k vm.Kernel) {
		const size = 96 * mib
		disks := []struct {
			options string
			differ  suite.Values
		}{
			{"", suite.Values{}},
			{"readonly,serial=LOCKED,queues=2,queue-size=64", suite.Values{
				"serial": "LOCKED", "ro": "1", "queues": "2", "vectors": "3", "depth": "64", "max_segments": "62",
				"discard_granularity": "0", "discard_max_bytes": "0", "write_zeroes_max_bytes": "0",
				"features": with(suite.ReadOnly, suite.MQ),
			}},
			{"cache=writethrough,serial=THROUGH,queue-size=1024", suite.Values{
				"serial": "THROUGH", "depth": "1024", "write_cache": "write through", "cache_type": "write through",
			}},
			{"block-size=4K,serial=twenty-characters-00,queues=4,queue-size=128", suite.Values{
				"serial": "twenty-characters-00", "logical_block_size": "4096", "physical_block_size": "4096",
				"queues": "4", "vectors": "5", "depth": "128", "max_segments": "126",
				"features": with(suite.MQ, suite.Discard, suite.WriteZeroes),
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
				assert.Equal(t, want, suite.Image(g.sh, "vd"+string(rune('a'+i)), images[i]).Shown(t))
			})
		}
		t.Run("read-only", func(t *testing.T) {
			suite.Image(g.sh, "vdb", images[1]).ReadOnly(t)
			assert.Equal(t, locked, digest(t, images[1]), "the image is what it was")
		})
		t.Run("resize", func(t *testing.T) { resize(t, s, g, images[0], size) })
		g.powerOff(t)
		s.stop(t)
		assert.Equal(t, locked, digest(t, images[1]), "the image is what it was")
	})
}

// hangups is how often the server is told to look at the size of a disk.
const hangups = 20

// resize changes the size of the image of vda.
func resize(t *testing.T, s *server, g *guest, image string, size int64) {
	vda := suite.Image(g.sh, "vda", image)
	truncate := func(bytes int64) { require.NoError(t, unix.Truncate(image, bytes)) }
	vda.Grow(t, size, 2*size, truncate)
	// On SIGHUP at once. There are many, so that a machine that stands still for some
	// seconds does not matter.
	size *= 2
	began := time.Now()
	for range hangups {
		size += mib
		truncate(size)
		s.signal(t, unix.SIGHUP)
		noticed := fmt.Sprintf("bytes=%d\n", size)
		require.True(t, settles(readyTime, func() bool { return strings.Contains(s.log.String(), noticed) }))
	}
	assert.Less(t, time.Since(began), (hangups-1)*time.Second, "looks that are a second apart cannot be as fast")
	vda.Sized(t, size)

	size /= 4 << 20
	size <<= 20
	truncate(size)
	vda.Sized(t, size)
	g.sh(t, `
		dd if=/dev/vda of=/dev/null bs=1M iflag=direct status=none
		if dd if=/dev/zero of=/dev/vda bs=512 count=1 seek=$(cat /sys/block/vda/size) oflag=direct; then exit 1; fi
	`)
}
