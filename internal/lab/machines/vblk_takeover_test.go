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
