package suite

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const writes = 16 // of 4 KiB, one after the other

var (
	plain  = fmt.Sprintf("dd if=/dev/zero of=/dev/$d bs=4k count=%d oflag=direct status=none", writes)
	synced = fmt.Sprintf("for i in $(seq %d); do dd if=/dev/zero of=/dev/$d bs=4k count=1 seek=$i oflag=direct conv=fsync status=none; done", writes)
)

// flushes returns how many flushes the disk behind the server has completed: field 16
// of /sys/block/NAME/stat. Partitions do not count theirs.
func (d Disk) flushes(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(d.behind(t, `
		disk=$(readlink -f /sys/class/block/$(basename "$back"))
		[ ! -e $disk/partition ] || disk=$(dirname $disk)
		awk '{ print $16 }' $disk/stat
	`))
	require.NoError(t, err)
	return n
}

// flushesOf returns how many flushes the disk behind the server sees of a script.
func (d Disk) flushesOf(t *testing.T, script string) int {
	t.Helper()
	before := d.flushes(t)
	d.sh(t, script)
	return d.flushes(t) - before
}

func (d Disk) cache(t *testing.T) string {
	t.Helper()
	return d.sh(t, "cat /sys/block/$d/queue/write_cache")
}

// Flushing watches the flushes that arrive at the block device behind the server,
// while the host's driver turns the cache off and on.
func (d Disk) Flushing(t *testing.T) {
	t.Helper()
	assert.Zero(t, d.flushesOf(t, plain), "the cache holds what nobody flushes")
	assert.Equal(t, writes, d.flushesOf(t, synced), "each flush of the host is one of the disk")

	d.sh(t, "echo write through >/sys/block/$d/cache_type")
	assert.Equal(t, "write through", d.cache(t))
	assert.GreaterOrEqual(t, d.flushesOf(t, plain), writes, "without a cache, each write is durable")
	d.sh(t, "echo write back >/sys/block/$d/cache_type")
	assert.Equal(t, "write back", d.cache(t))
	assert.Zero(t, d.flushesOf(t, plain))
	before := d.flushes(t)
	d.sh(t, "echo write through >/sys/block/$d/cache_type")
	assert.Eventually(t, func() bool { return d.flushes(t) > before }, patience, 50*time.Millisecond,
		"the cache is flushed when it is turned off, though the driver does not wait for it")
	d.sh(t, "echo write back >/sys/block/$d/cache_type")
}

// patience is how long is waited for what comes soon on a machine that is not busy.
const patience = 3 * time.Minute

// WriteThrough watches the block device behind a disk that is served without a cache.
func (d Disk) WriteThrough(t *testing.T) {
	t.Helper()
	assert.Equal(t, "write through", d.cache(t))
	assert.GreaterOrEqual(t, d.flushesOf(t, plain), writes, "each write is durable")
	d.sh(t, "echo write back >/sys/block/$d/cache_type")
	assert.Zero(t, d.flushesOf(t, plain), "the driver has turned the cache on")
}

// Evidence is for a disk whose registers are memory, and whose driver is new: writes
// are durable until its first flush, and the disk's cache is used from then on.
func (d Disk) Evidence(t *testing.T) {
	t.Helper()
	assert.GreaterOrEqual(t, d.flushesOf(t, plain), writes, "no flush was seen yet: each write is durable")
	assert.GreaterOrEqual(t, d.flushesOf(t, synced), writes)
	assert.Zero(t, d.flushesOf(t, plain), "the driver has shown that it flushes")
	assert.Equal(t, writes, d.flushesOf(t, synced), "each flush of the host is one of the disk")
}
