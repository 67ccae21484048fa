package suite

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Random does verified I/O of mixed sizes by so many jobs on all processors, each on
// this many MiB and half as many again, through three interfaces of the kernel. Every
// queue of the disk must interrupt.
func (d Disk) Random(t *testing.T, jobs, mibs int) {
	t.Helper()
	before := d.Interrupts(t)
	require.Len(t, before, d.number(t, "ls /sys/block/$d/mq | wc -l"))
	d.sh(t, fmt.Sprintf(`
		n=%d m=%d h=%d
		common="--filename=/dev/$d --direct=1 --group_reporting --verify=crc32c --verify_fatal=1
			--verify_backlog=64 --cpus_allowed=0-$(($(nproc) - 1)) --cpus_allowed_policy=split"
		fio $common --name=mixed --rw=randrw --bsrange=4k-256k --numjobs=$n --size=${m}m --offset_increment=${m}m \
			--ioengine=libaio --iodepth=16
		fio $common --name=small --rw=randwrite --bssplit=512/50:1536/30:4k/20 --numjobs=$n --size=1m \
			--offset=$((n * m))m --offset_increment=1m --ioengine=libaio --iodepth=32
		fio $common --name=uring --rw=randrw --bsrange=4k-64k --numjobs=$n --size=${h}m \
			--offset=$((n * (m + 1)))m --offset_increment=${h}m --ioengine=io_uring --iodepth=64
		fio --name=cached --filename=/dev/$d --rw=randrw --bsrange=4k-128k --size=${m}m --offset=$((n * (m + 1 + h)))m \
			--ioengine=psync --fdatasync=16 --verify=crc32c --verify_fatal=1
	`, jobs, mibs, mibs/2))
	for queue, n := range d.Interrupts(t) {
		assert.Greater(t, n, before[queue], "interrupts of %s", queue)
	}
}

// number runs a script on the host that prints a number.
func (d Disk) number(t *testing.T, script string) int {
	t.Helper()
	n, err := strconv.Atoi(d.sh(t, script))
	require.NoError(t, err)
	return n
}

var interruptLine = regexp.MustCompile(`(?m)^ *\d+:((?: +\d+)+) .*\b(virtio\d+-req\.\d+)`)

// Interrupts returns how often each queue of the disk has interrupted the host.
func (d Disk) Interrupts(t *testing.T) map[string]int {
	t.Helper()
	device, table, _ := strings.Cut(d.sh(t, "virtio $d; cat /proc/interrupts"), "\n")
	counts := make(map[string]int)
	for _, m := range interruptLine.FindAllStringSubmatch(table, -1) {
		if !strings.HasPrefix(m[2], strings.TrimSpace(device)+"-") {
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
