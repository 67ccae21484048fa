package machines

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/lab"
)

// vblk starts a pair whose endpoint has our program and a disk with two partitions.
func vblk(t *testing.T, rcKernel string, edit ...func(*Config)) *rig {
	t.Helper()
	r := start(t, rcKernel, func(c *Config) {
		require.NoError(t, c.AddProgram(t.Context(), t.TempDir()))
		for _, e := range edit {
			e(c)
		}
	})
	require.NoError(t, r.Partition(t.Context()))
	return r
}

// disk returns what the root complex sees of one of these partitions, by its serial
// number.
func (r *rig) disk(serial, partition string, start int64) suite.Disk {
	return suite.Disk{
		Host:    func(t *testing.T, script string) string { t.Helper(); return (&rig{t, r.Pair}).rc(script) },
		Serial:  serial,
		Outside: func(t *testing.T, script string) string { t.Helper(); return (&rig{t, r.Pair}).ep(script) },
		Back:    partition,
		File:    r.cfg.disk, At: start,
	}
}

// serveOn starts the program on the endpoint and waits until the root complex's
// driver has the disk.
func (r *rig) serveOn(args string) {
	r.t.Helper()
	r.ep(`
		vblk-ep serve --verbose ` + args + ` >/tmp/vblk.out 2>/tmp/vblk.err &
		echo $! >/tmp/vblk.pid
		within 180 grep -q "controller is started" /tmp/vblk.err || { cat /tmp/vblk.out /tmp/vblk.err; exit 1; }
		cat /tmp/vblk.out
	`)
	r.rc("within 180 test -b /dev/vda")
}

// stopServing stops the program, which must end well.
func (r *rig) stopServing() {
	r.t.Helper()
	r.ep(`
		kill -TERM $(cat /tmp/vblk.pid)
		within 180 test ! -d /proc/$(cat /tmp/vblk.pid)
		# Only the first function has an ITS here; others are told to poll.
		! grep -E 'level=(WARN|ERROR)' /tmp/vblk.err | grep -v 'no doorbell' || exit 1
		[ -z "$(ls /sys/kernel/config/pci_ep/functions/pci_epf_user)" ]
	`)
}

// doorbells returns how often each doorbell interrupted the endpoint.
func (r *rig) doorbells() (counts []int) {
	r.t.Helper()
	for line := range strings.Lines(r.ep("cat /proc/interrupts")) {
		if !regexp.MustCompile(`doorbell\d+`).MatchString(line) {
			continue
		}
		sum := 0
		for _, field := range strings.Fields(line)[1:] {
			n, err := strconv.Atoi(field)
			if err != nil {
				break
			}
			sum += n
		}
		counts = append(counts, sum)
	}
	return counts
}

// verify writes and reads back with checksums, with several requests in flight.
const verify = `
	fio --name=v --filename=/dev/vda --rw=randrw --bsrange=4k-256k --size=32m --ioengine=io_uring \
		--iodepth=16 --direct=1 --verify=crc32c --randseed=1 --minimal >/dev/null
`

// traffic is what crossed the link since before.
func (r *rig) traffic(before lab.Stats) lab.Stats {
	after := r.Lab.Stats()
	return lab.Stats{
		DMATransfers: after.DMATransfers - before.DMATransfers, Interrupts: after.Interrupts - before.Interrupts,
		InboundWrites: after.InboundWrites - before.InboundWrites, InboundReads: after.InboundReads - before.InboundReads,
	}
}

// The program and nothing else on the endpoint, a stock kernel on the other side: disks
// appear, and do all that they do on a slot of a monitor. Two disks are two functions of
// one controller; one is read-only, whatever the root complex tries. (Several queues are
// missed where processors are emulated and busy.)
func TestVMVblk(t *testing.T) {
	for _, kernel := range []string{"newest", "debian12", "arm64"} {
		t.Run(kernel, func(t *testing.T) {
			r := vblk(t, kernel)
			t.Log(r.ep("vblk-ep check --disk /dev/vda2"))
			free, locked := r.disk("FREE", "/dev/vda2", secondStart), r.disk("LOCKED", "/dev/vda1", 1<<20)
			r.ep("dd if=/dev/urandom of=/dev/vda1 bs=1M count=8 oflag=direct status=none")
			r.serveOn("--disk /dev/vda2,serial=FREE --disk /dev/vda1,readonly,serial=LOCKED")
			r.rc("within 180 test -b /dev/vdb")
			var files suite.Files
			part := func(name string, f func(t *testing.T)) {
				if !t.Failed() {
					t.Run(name, f)
				}
			}
			part("flush", free.Evidence) // first: no flush was seen yet
			part("values", func(t *testing.T) {
				free.Shows(t, free.Limits(t))
				free.Shows(t, suite.Values{
					"driver": "virtio_blk", "pci_driver": "virtio-pci", "vendor": "0x1af4", "device": "0x1042",
					"status": "0x0000000f", "ro": "0", "vectors": "2", "queues": "1", "depth": "256",
					"write_cache": "write back", "cache_type": "write back",
				})
				locked.Shows(t, locked.Limits(t))
				locked.Shows(t, suite.Values{"ro": "1", "status": "0x0000000f", "discard_max_bytes": "0", "write_zeroes_max_bytes": "0"})
			})
			part("random", func(t *testing.T) { r.counted(t, func() { free.Random(t, 2, 8) }) })
			part("discard", func(t *testing.T) { free.Discards(t, 4) })
			part("read-only", locked.ReadOnly)
			part("driver", func(t *testing.T) {
				kept := free.Keep(t)
				free.Rebind(t, kept, 0, 4)
				free.Reload(t, kept, 3)
				free.Verified(t)
				free.Agrees(t)
			})
			part("grow", func(t *testing.T) {
				free.Grow(t, secondSize, secondSize+56<<20, func(bytes int64) {
					free.Outside(t, fmt.Sprintf(`
						echo "size=%dM" | sfdisk -q --no-reread --force -N 2 /dev/vda
						partx -u -n 2 /dev/vda
					`, bytes>>20))
				})
			})
			part("file system", func(t *testing.T) { files = free.Fill(t) })
			if t.Failed() {
				return
			}
			r.rc("for d in vda vdb; do echo 1 >/sys/block/$d/device/../remove; done")
			r.stopServing()
			files.Check(t, free)
		})
	}
}

// counted counts what crosses the link meanwhile. Notifications are interrupts of the
// endpoint, data goes by DMA, and no access to a register is a message.
func (r *rig) counted(t *testing.T, work func()) {
	t.Helper()
	before, rung := r.Lab.Stats(), sum(r.doorbells())
	work()
	rang := sum(r.doorbells()) - rung
	crossed := r.traffic(before)
	t.Logf("%d doorbells, %+v", rang, crossed)
	require.Positive(t, rang)
	require.LessOrEqual(t, uint64(rang), crossed.InboundWrites)
	require.Zero(t, crossed.InboundReads, "registers are memory")
	require.Greater(t, crossed.DMATransfers, uint64(100))
	require.Positive(t, crossed.Interrupts)
}

// What a controller lacks, or is told not to use, is done without.
func TestVMVblkWithout(t *testing.T) {
	r := vblk(t, "newest")
	for _, option := range []string{"dma=off", "doorbell=poll", "dma=off,doorbell=poll"} {
		t.Log(option, r.ep(fmt.Sprintf("vblk-ep check --disk /dev/vda2 --epc ,%s", option)))
		r.serveOn("--disk /dev/vda2 --epc ," + option)
		before := r.Lab.Stats()
		if strings.Contains(option, "dma=off") { // each eight bytes are a message here
			r.rc(strings.Replace(verify, "--size=32m", "--size=2m", 1))
		} else {
			r.rc(verify)
		}
		crossed := r.traffic(before)
		t.Logf("%s: %+v", option, crossed)
		if strings.Contains(option, "dma=off") {
			require.Zero(t, crossed.DMATransfers)
		}
		if strings.Contains(option, "poll") {
			require.Zero(t, crossed.InboundWrites)
		}
		r.rc("echo 1 >/sys/block/vda/device/../remove")
		r.stopServing()
	}
}

// One server is stopped and another one goes on, while the root complex uses the disk.
func TestVMVblkRestart(t *testing.T) {
	r := vblk(t, "newest")
	r.serveOn("--disk /dev/vda2 --epc ,keep")
	r.rc(`
		fio --name=v --filename=/dev/vda --rw=randrw --bsrange=4k-64k --size=16m --ioengine=io_uring --iodepth=8 \
			--direct=1 --verify=crc32c --randseed=1 --loops=3 --minimal >/tmp/fio.out 2>&1 &
		echo $! >/tmp/fio.pid
	`)
	for range 3 {
		r.ep(`
			kill -TERM $(cat /tmp/vblk.pid)
			within 180 test ! -d /proc/$(cat /tmp/vblk.pid)
			[ -n "$(ls /sys/kernel/config/pci_ep/functions/pci_epf_user)" ]
			vblk-ep serve --verbose --disk /dev/vda2 --epc ,keep >/tmp/vblk.out 2>/tmp/vblk.err &
			echo $! >/tmp/vblk.pid
			within 180 grep -q "a function is taken over" /tmp/vblk.err || { cat /tmp/vblk.out /tmp/vblk.err; exit 1; }
		`)
	}
	r.rc("within 180 test ! -d /proc/$(cat /tmp/fio.pid); cat /tmp/fio.out; ! grep -i -E 'error|fail' /tmp/fio.out")
	r.rc("dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct status=none")
}

// Behind an IOMMU, memory is not at its own address: all that the controller is to reach
// is mapped for it. That goes for registers, for the descriptors and buffers of its DMA
// engine, and for what a doorbell's write is sent to.
func TestVMVblkIOMMU(t *testing.T) {
	r := vblk(t, "newest", func(c *Config) { c.IOMMU = true })
	require.Equal(t, "DMA\n", r.ep("cat /sys/bus/platform/devices/lab-ep.*/iommu_group/type"), "it translates")
	r.serveOn("--disk /dev/vda2")
	r.counted(t, func() { r.rc(strings.Replace(verify, "--size=32m", "--size=8m", 1)) })
	r.rc("echo 1 >/sys/block/vda/device/../remove")
	r.stopServing()
}
