package machines

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// takeOver starts the program after one that was killed. It must go on with the function,
// and returns how many requests it executes again.
func (r *rig) takeOver(args string) (again int) {
	r.t.Helper()
	r.ep(`
		./vblk-ep serve --verbose ` + args + ` >/tmp/vblk.out 2>/tmp/vblk.err &
		echo $! >/tmp/vblk.pid
		within 180 grep -q "ring taken over" /tmp/vblk.err || { cat /tmp/vblk.out /tmp/vblk.err; exit 1; }
		within 180 grep -q "a function is taken over" /tmp/vblk.err
	`)
	line := regexp.MustCompile(`ring taken over.* again=(\d+)`).FindStringSubmatch(r.ep("cat /tmp/vblk.err"))
	require.NotNil(r.t, line)
	again, err := strconv.Atoi(line[1])
	require.NoError(r.t, err)
	return again
}

// untilBusy waits until that many transfers were made since before.
func (r *rig) untilBusy(before, transfers uint64) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return r.Lab.Stats().DMATransfers > before+transfers },
		3*time.Minute, time.Millisecond, "there is I/O")
}

// TestVMVblkTakeover kills the server again and again, in the middle of requests of a
// stock kernel. Each time the next one goes on, and the root complex notices nothing.
func TestVMVblkTakeover(t *testing.T) {
	for _, kernel := range []string{"newest", "debian12"} {
		t.Run(kernel, func(t *testing.T) {
			r := vblk(t, kernel)
			const args = "--disk /dev/vda2"
			r.serveOn(args)
			again := 0
			for round := range 6 {
				before := r.Lab.Stats().DMATransfers
				r.rc(`
					fio --name=v --filename=/dev/vda --rw=randrw --bsrange=4k-64k --size=8m --ioengine=io_uring \
						--iodepth=16 --direct=1 --verify=crc32c --randseed=1 --loops=2 --minimal >/tmp/fio.out 2>&1 &
					echo $! >/tmp/fio.pid
				`)
				r.untilBusy(before, uint64(40+37*round))
				r.killServer()
				n := r.takeOver(args)
				t.Logf("round %d: %d requests again", round, n)
				again += n
				r.rc(`
					within 180 test ! -d /proc/$(cat /tmp/fio.pid)
					! grep -i -E 'error|fail|verify:' /tmp/fio.out || { cat /tmp/fio.out; exit 1; }
					grep -q '^3;fio' /tmp/fio.out
				`)
				r.ep(alive)
			}
			require.Positive(t, again, "the test does not show what it is for")

			// With nothing in flight, and with a file system in use.
			r.killServer()
			require.Zero(t, r.takeOver(args))
			r.rc(`
				mkfs.ext4 -q -F /dev/vda
				mount -t ext4 /dev/vda /mnt
				dd if=/dev/urandom of=/tmp/file bs=1M count=16 status=none
			`)
			before := r.Lab.Stats().DMATransfers
			r.rc(`
				(cp /tmp/file /mnt/file && sync) >/tmp/cp.out 2>&1 &
				echo $! >/tmp/cp.pid
			`)
			r.untilBusy(before, 30)
			r.killServer()
			t.Logf("file system: %d requests again", r.takeOver(args))
			r.rc(`
				within 180 test ! -d /proc/$(cat /tmp/cp.pid)
				[ ! -s /tmp/cp.out ]
				umount /mnt
				e2fsck -f -n /dev/vda
				mount -t ext4 /dev/vda /mnt
				cmp /tmp/file /mnt/file
				umount /mnt
				! dmesg | grep -E 'I/O error|blocked for more'
			`)
			r.rc(fmt.Sprintf(remove, 1))
			r.stopServing()
		})
	}
}

// TestVMVblkBetweenServers looks at a function that was left, fails to take it over, and has
// the root complex begin anew while the next server is about to go on.
func TestVMVblkBetweenServers(t *testing.T) {
	r := vblk(t, "newest")
	const args = "--disk /dev/vda2"
	r.serveOn(args)
	kept, read := r.rc(at(1)+write("/dev/disk")), read("/dev/disk")

	r.ep(`
		! vblk-ep check --disk /dev/vda2 2>/tmp/check.err || exit 1
		grep "taken by a running server" /tmp/check.err
	`)
	r.killServer()
	r.ep(`
		vblk-ep check --disk /dev/vda2 >/tmp/check.out
		grep "left by another server, taken over" /tmp/check.out
		vblk-ep check --disk /dev/vda2,queue-size=128 >/tmp/check.out
		grep "left by another server, made anew" /tmp/check.out
		! vblk-ep check --disk /dev/vda2,queues=2 2>/tmp/check.err || exit 1
		grep "to serve is to make it anew" /tmp/check.err

		! vblk-ep serve --disk /dev/vda2 --disk /dev/vda1 2>/tmp/vblk.err || exit 1
		grep "is started for other functions" /tmp/vblk.err
		! vblk-ep serve --disk /dev/vda2,queues=2 --disk /dev/none 2>/tmp/vblk.err || exit 1
		grep "/dev/none" /tmp/vblk.err
		test -c /dev/pci-epf-user/*
	`)
	r.takeOver(args)
	require.Equal(t, kept, r.rc(read))

	// The server has the function, and cannot go on: nobody reads what it announces.
	r.killServer()
	r.ep(`
		mkfifo /tmp/full
		exec 3<>/tmp/full
		dd if=/dev/zero of=/tmp/full bs=4k count=16 status=none
		./vblk-ep serve --verbose ` + args + ` >/tmp/full 2>/tmp/vblk.err &
		echo $! >/tmp/vblk.pid
		within 180 sh -c 'ls -l /proc/$(cat /tmp/vblk.pid)/fd | grep -q /dev/pci-epf-user/'
		sleep 1
	`)
	r.Lab.DropLink(true)
	r.Lab.DropLink(false)
	r.rc(fmt.Sprintf(remove, 1) + `
		echo 1 >/sys/bus/pci/rescan 2>/dev/null &
		within 180 sh -c "ls -d /sys/bus/pci/devices/0000:01:00.0/virtio*/block/* >/dev/null 2>&1"
	`)
	r.ep(`
		cat /tmp/full >/dev/null 2>&1 &
		within 180 grep -q "a function is taken over" /tmp/vblk.err || { cat /tmp/vblk.err; exit 1; }
		grep "may have gone" /tmp/vblk.err
		! grep "ring taken over" /tmp/vblk.err
	`)
	require.Equal(t, kept, r.rc(at(1)+read))
	r.ep(alive)
	r.rc(fmt.Sprintf(remove, 1))
	r.stopServing()
}
