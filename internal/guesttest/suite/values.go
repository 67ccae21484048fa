package suite

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// show prints what the host's kernel made of the disk, as NAME=VALUE.
const show = `
	q=/sys/block/$d/queue; p=$(pci $d)
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

// columns of lsblk, and what sysfs calls the same.
var columns = map[string]string{
	"RO": "ro", "DISC-GRAN": "discard_granularity", "DISC-MAX": "discard_max_bytes",
	"LOG-SEC": "logical_block_size", "PHY-SEC": "physical_block_size",
	"MIN-IO": "minimum_io_size", "OPT-IO": "optimal_io_size",
}

// Values are what a host's kernel made of a disk: the names of files in sysfs, and
// their contents.
type Values map[string]string

// Shown returns what the host's kernel made of the disk. Features are the numbers of
// their bits. The test fails if lsblk shows something else.
func (d Disk) Shown(t *testing.T) Values {
	t.Helper()
	got := make(Values)
	for line := range strings.Lines(d.sh(t, show)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			got[name] = value
		}
	}
	got["features"] = bits(got["features"])
	sectors, err := strconv.ParseInt(got["size"], 10, 64)
	require.NoError(t, err, "%v", got)
	assert.Equal(t, fmt.Sprint(sectors*512), got["lsblk_SIZE"])
	for column, name := range columns {
		assert.Equal(t, got[name], got["lsblk_"+column], "%s of lsblk", column)
	}
	maps.DeleteFunc(got, func(name, _ string) bool { return strings.HasPrefix(name, "lsblk_") })
	return got
}

// Shows fails the test unless the host's kernel made of the disk what is wanted.
func (d Disk) Shows(t *testing.T, want Values) {
	t.Helper()
	got := d.Shown(t)
	for name, value := range want {
		assert.Equal(t, value, got[name], "%s of %s", name, d.Name+d.Serial)
	}
}

// Limits returns the block sizes of the disk behind the server, and its size, as its
// kernel has them, to be shown by the host.
func (d Disk) Limits(t *testing.T) Values {
	t.Helper()
	f := strings.Fields(d.behind(t, `blockdev --getss --getpbsz --getsz "$back"`))
	require.Len(t, f, 3)
	return Values{"logical_block_size": f[0], "physical_block_size": f[1], "size": f[2]}
}

// Feature bits, by the names of the specification (virtio 1.4 §5.2.3, §6).
const (
	SegMax, ReadOnly, BlkSize, Flush, Topology, ConfigWCE, MQ, Discard, WriteZeroes = 2, 5, 6, 9, 10, 11, 12, 13, 14

	IndirectDesc, EventIdx, Version1, AccessPlatform, RingPacked, OrderPlatform, RingReset = 28, 29, 32, 33, 34, 36, 40
)

// Features returns the bits as Shown does.
func Features(bits ...int) string {
	slices.Sort(bits)
	return fmt.Sprint(bits)
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
