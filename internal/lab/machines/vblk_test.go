package machines

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/lab"
)

// buildVblk builds the program for the endpoint.
func buildVblk(t *testing.T) string {
	t.Helper()
	root, err := Repository()
	require.NoError(t, err)
	out := filepath.Join(t.TempDir(), "vblk-ep")
	cmd := exec.Command("go", "build", "-o", out, "./cmd/vblk-ep")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
	text, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", text)
	return out
}

// vblk starts a pair whose endpoint has our program and a disk with two partitions.
func vblk(t *testing.T, rcKernel string, edit ...func(*Config)) *rig {
	t.Helper()
	program := buildVblk(t)
	r := start(t, rcKernel, func(c *Config) {
		image := filepath.Join(t.TempDir(), "disk")
		require.NoError(t, os.WriteFile(image, nil, 0o600))
		require.NoError(t, os.Truncate(image, 256<<20))
		c.EP.Args = []string{"-blockdev", "driver=file,node-name=disk,filename=" + image}
		c.EP.Devices = []string{"virtio-blk-pci,drive=disk,disable-legacy=on"}
		c.EP.Files["vblk-ep"] = program
		c.RC.Modules = append(c.RC.Modules, "virtio_blk")
		for _, e := range edit {
			e(c)
		}
	})
	r.ep(`
		printf 'label: gpt\nsize=64M\nsize=128M\n' | sfdisk -q --no-reread /dev/vda
		within 10 test -b /dev/vda2
	`)
	return r
}

// serveOn starts the program on the endpoint and waits until the root complex's
// driver has the disk.
func (r *rig) serveOn(args string) {
	r.t.Helper()
	r.ep(`
		./vblk-ep serve --verbose ` + args + ` >/tmp/vblk.out 2>/tmp/vblk.err &
		echo $! >/tmp/vblk.pid
		within 20 grep -q "controller is started" /tmp/vblk.err || { cat /tmp/vblk.out /tmp/vblk.err; exit 1; }
		cat /tmp/vblk.out
	`)
	r.t.Cleanup(func() {
		if r.t.Failed() && r.EP() != nil && !r.EP().ended() {
			r.t.Log(r.ep("cat /tmp/vblk.out /tmp/vblk.err"))
		}
	})
	r.rc("within 60 test -b /dev/vda")
}

// stopServing stops the program, which must end well.
func (r *rig) stopServing() {
	r.t.Helper()
	r.ep(`
		kill -TERM $(cat /tmp/vblk.pid)
		within 30 test ! -d /proc/$(cat /tmp/vblk.pid)
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

// files makes a file system on a disk of the root complex, uses it, and checks it.
const files = `
	mkfs.ext4 -q -F /dev/vda
	mount -t ext4 /dev/vda /mnt
	dd if=/dev/urandom of=/mnt/file bs=1M count=24 status=none
	sum=$(sha256sum </mnt/file)
	umount /mnt
	e2fsck -f -n /dev/vda
	echo 3 >/proc/sys/vm/drop_caches
	mount -t ext4 /dev/vda /mnt
	[ "$sum" = "$(sha256sum </mnt/file)" ]
	umount /mnt
`

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

// The program and nothing else on the endpoint, a stock kernel on the other side: a
// disk appears, and works. Notifications are interrupts of the endpoint, data goes by
// DMA, and no access to a register is a message.
func TestVMVblk(t *testing.T) {
	for _, kernel := range []string{"newest", "debian12", "arm64"} {
		t.Run(kernel, func(t *testing.T) {
			r := vblk(t, kernel)
			t.Log(r.ep("./vblk-ep check --disk /dev/vda2"))
			r.serveOn("--disk /dev/vda2")
			before, rung := r.Lab.Stats(), r.doorbells()
			require.Len(t, rung, 1, "one line a queue")
			r.rc(files)
			r.rc(verify)
			rang := r.doorbells()[0] - rung[0]
			crossed := r.traffic(before)
			t.Logf("%d doorbells, %+v", rang, crossed)
			require.Positive(t, rang)
			require.LessOrEqual(t, uint64(rang), crossed.InboundWrites)
			require.Zero(t, crossed.InboundReads, "registers are memory")
			require.Greater(t, crossed.DMATransfers, uint64(100))
			require.Positive(t, crossed.Interrupts)
			r.rc(files)
			r.rc("echo 1 >/sys/block/vda/device/../remove")
			r.stopServing()
			require.Contains(t, r.ep("blkid /dev/vda2; e2fsck -f -n /dev/vda2 2>&1"), "ext4")
		})
	}
}

// What a controller lacks, or is told not to use, is done without.
func TestVMVblkWithout(t *testing.T) {
	r := vblk(t, "newest")
	for _, option := range []string{"dma=off", "doorbell=poll", "dma=off,doorbell=poll"} {
		t.Log(option, r.ep(fmt.Sprintf("./vblk-ep check --disk /dev/vda2 --epc ,%s", option)))
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
			within 30 test ! -d /proc/$(cat /tmp/vblk.pid)
			[ -n "$(ls /sys/kernel/config/pci_ep/functions/pci_epf_user)" ]
			./vblk-ep serve --verbose --disk /dev/vda2 --epc ,keep >/tmp/vblk.out 2>/tmp/vblk.err &
			echo $! >/tmp/vblk.pid
			within 20 grep -q "a function is taken over" /tmp/vblk.err || { cat /tmp/vblk.out /tmp/vblk.err; exit 1; }
		`)
	}
	r.rc("within 120 test ! -d /proc/$(cat /tmp/fio.pid); cat /tmp/fio.out; ! grep -i -E 'error|fail' /tmp/fio.out")
	r.rc("dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct status=none")
}

// Two disks are two functions of one controller. One is read-only, whatever the root
// complex tries. (Several queues are missed where processors are emulated and busy.)
func TestVMVblkTwoDisks(t *testing.T) {
	r := vblk(t, "newest")
	r.serveOn("--disk /dev/vda2 --disk /dev/vda1,readonly")
	r.rc(`
		within 60 test -b /dev/vdb
		rw=/dev/vda ro=/dev/vdb
		[ $(blockdev --getro $rw) = 0 ] || rw=/dev/vdb ro=/dev/vda
		[ $(blockdev --getro $ro) = 1 ]
		[ $(blockdev --getsize64 $ro) = $((64 << 20)) ]
		! dd if=/dev/zero of=$ro bs=4k count=1 oflag=direct status=none
		dd if=$ro of=/dev/null bs=1M iflag=direct status=none
		fio --name=v --filename=$rw --rw=randrw --bsrange=4k-64k --size=16m --ioengine=io_uring \
			--iodepth=8 --direct=1 --verify=crc32c --randseed=1 --minimal >/dev/null
	`)
	r.rc("for d in vda vdb; do echo 1 >/sys/block/$d/device/../remove; done")
	r.stopServing()
}
