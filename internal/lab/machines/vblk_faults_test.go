package machines

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// at returns the root complex's path of the disk in a root port, which is /dev/disk,
// once the disk is there: a disk of before may still have the name that this one had.
func at(port int) string {
	return fmt.Sprintf(`
		device=/sys/bus/pci/devices/0000:%02x:00.0
		within 180 sh -c "ls -d $device/virtio*/block/*/dev >/dev/null 2>&1"
		name=$(basename $(ls -d $device/virtio*/block/*))
		within 180 test -b /dev/$name
		ln -sf $name /dev/disk
	`, port)
}

// killServer kills the program on the endpoint, which has no time to say anything.
func (r *rig) killServer() {
	r.t.Helper()
	r.ep(`
		kill -KILL $(cat /tmp/vblk.pid)
		within 180 sh -c '! test -d /proc/$(cat /tmp/vblk.pid)'
	`)
}

// serveAgain starts the program on the endpoint after another one.
func (r *rig) serveAgain(args string) {
	r.t.Helper()
	r.ep(`
		./vblk-ep serve --verbose ` + args + ` >/tmp/vblk.out 2>/tmp/vblk.err &
		echo $! >/tmp/vblk.pid
		within 180 grep -q "controller is started" /tmp/vblk.err || { cat /tmp/vblk.out /tmp/vblk.err; exit 1; }
	`)
}

// alive says that the server lives, and that the device never had to be reset.
const alive = `
	test -d /proc/$(cat /tmp/vblk.pid)
	! grep -E 'needs a reset|level=ERROR' /tmp/vblk.err
`

// remove takes a function out of the root complex.
const remove = "echo 1 >/sys/bus/pci/devices/0000:%02x:00.0/remove\n"

// TestVMVblkFaults breaks the link, DMA, the root complex's driver, the server and the
// endpoint, one after the other, most of it in the middle of I/O. Each time the rest
// survives, and the disk is back with what had been flushed.
func TestVMVblkFaults(t *testing.T) {
	r := vblk(t, "newest", func(c *Config) { c.RC.Reboot = true })
	const disk = "/dev/disk"
	port := 1
	r.serveOn("--disk /dev/vda2")
	kept, read := r.rc(at(port)+write(disk)), read(disk)

	t.Run("the root complex is reset", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.busy(disk)
		require.NoError(t, r.ResetRC(t.Context()))
		require.Equal(t, kept, r.rc(at(port)+read))
		r.ep(alive)
	})
	t.Run("DMA stands still", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.Lab.StallDMA(true)
		r.rc("dd if=/dev/disk of=/tmp/slow bs=1M count=4 iflag=direct status=none </dev/null >/dev/null 2>&1 & sleep 1; test ! -s /tmp/slow")
		r.Lab.StallDMA(false)
		require.Equal(t, kept, r.rc("within 180 sh -c '! pidof dd >/dev/null'\nsha256sum </tmp/slow"))
		r.ep(alive)
	})
	t.Run("DMA fails", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.rc(`
			dmesg -c >/dev/null
			fio --name=load --filename=/dev/disk --offset=64m --size=64m --rw=randrw --bs=32k --direct=1 \
				--ioengine=io_uring --iodepth=4 --continue_on_error=all --ignore_error=EIO \
				--time_based --runtime=600 </dev/null >/tmp/load 2>&1 &
			echo $! >/tmp/fio.pid
		`)
		for n, status := 0, 1; n < 20 || status != 0; n++ {
			require.Less(t, n, 1000, "no request has failed")
			r.Lab.FailDMA(1)
			_, status = r.tryRC(`dmesg | grep "I/O error, dev vd"`)
		}
		r.Lab.FailDMA(0)
		r.rc(`
			kill $(cat /tmp/fio.pid)
			within 180 sh -c '! test -d /proc/$(cat /tmp/fio.pid)' || { cat /tmp/load; exit 1; }
		`)
		require.Equal(t, kept, r.rc(read))
		r.ep(alive)
	})
	t.Run("the driver lets go under load", func(t *testing.T) {
		r := &rig{t, r.Pair}
		for range 3 {
			r.busy(disk)
			r.rc(`
				echo 0000:01:00.0 >/sys/bus/pci/drivers/virtio-pci/unbind
				within 180 sh -c '! pidof fio >/dev/null'
				echo 0000:01:00.0 >/sys/bus/pci/drivers/virtio-pci/bind
			`)
			require.Equal(t, kept, r.rc(at(port)+read))
		}
		r.ep(alive)
	})
	t.Run("the link drops", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.Lab.DropLink(true)
		r.rc("sleep 1; setpci -s 1:0.0 0.l | grep -x ffffffff")
		r.Lab.DropLink(false)
		r.rc(fmt.Sprintf(remove, port) + "echo 1 >/sys/bus/pci/rescan")
		require.Equal(t, kept, r.rc(at(port)+read))
		r.ep(alive)
	})
	t.Run("bus mastering is turned off", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.busy(disk)
		r.rc("setpci -s 1:0.0 COMMAND=0:4")
		require.Eventually(t, func() bool { // what was under way is refused, and counted
			before := r.Lab.Stats()
			time.Sleep(time.Second)
			crossed := r.traffic(before)
			return crossed.DMATransfers == 0 && crossed.Interrupts == 0
		}, 3*time.Minute, time.Millisecond, "it goes on")
		require.NoError(t, r.ResetRC(t.Context())) // no driver turns it off in the middle of requests
		require.Equal(t, kept, r.rc(at(port)+read))
		r.ep("test -d /proc/$(cat /tmp/vblk.pid)") // how it saw the ring end, differs
	})
	t.Run("the server is killed, idle", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.killServer()
		r.serveAgain("--disk /dev/vda2")
		require.Equal(t, kept, r.rc(at(port)+read))
		r.ep(alive)
	})
	t.Run("the driver lets go while nobody serves", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.killServer()
		r.rc(fmt.Sprintf(remove, port)) // while the registers are still memory
		r.serveAgain("--disk /dev/vda2")
		r.rc("echo 1 >/sys/bus/pci/rescan")
		require.Equal(t, kept, r.rc(at(port)+read))
		r.ep(alive)
	})
	t.Run("the server is killed under load", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.busy(disk)
		kept = r.rc(write(disk))
		r.killServer()
		time.Sleep(time.Second)
		r.serveAgain("--disk /dev/vda2")
		before := r.Lab.Stats().DMATransfers
		r.untilBusy(before, 50)
		require.Equal(t, kept, r.rc(read))
		require.NoError(t, r.ResetRC(t.Context()))
		require.Equal(t, kept, r.rc(at(port)+read))
		r.ep(alive)
	})
	t.Run("the root complex is reset while nobody serves", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.busy(disk)
		r.killServer()
		resets, reset := r.RC().Events("RESET"), make(chan error, 1)
		go func() { reset <- r.ResetRC(t.Context()) }()
		require.Eventually(t, func() bool { return r.RC().Events("RESET") > resets }, 3*time.Minute, time.Millisecond)
		r.serveAgain("--disk /dev/vda2")
		r.ep("grep 'may have gone' /tmp/vblk.err; ! grep 'ring taken over' /tmp/vblk.err")
		require.NoError(t, <-reset)
		require.Equal(t, kept, r.rc(at(port)+read))
		r.ep(alive)
	})
	t.Run("the endpoint is killed", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.busy(disk)
		r.KillEP()
		r.rc("true")
		require.NoError(t, r.StartEP())
		r.serveAgain("--disk /dev/vda2")
		require.NoError(t, r.ResetRC(t.Context()))
		port++
		require.Equal(t, kept, r.rc(at(port)+read))
		r.ep(alive)
	})
	if !t.Failed() {
		r.rc(fmt.Sprintf(remove, port))
		r.stopServing()
	}
}

// That the host's end has gone may be told when the host's next driver has set up the device
// already. It is served.
func TestVMVblkIsToldLate(t *testing.T) {
	r := vblk(t, "newest")
	r.serveOn("--disk /dev/vda2")
	r.ep(`
		kill -STOP $(cat /tmp/vblk.pid)
		wc -l </tmp/vblk.err >/tmp/told
	`)
	r.rc(`
		device=$(readlink -f /sys/block/vda/device/..)
		port=$(dirname $device)
		echo 1 >$device/remove
		control=$(od -An -tu1 -j62 -N1 $port/config)
		for reset in 64 0; do # the port's bridge control: secondary bus reset
			printf "\\$(printf %o $((control | reset)))" | dd of=$port/config bs=1 seek=62 conv=notrunc status=none
		done
		{ echo 1 >/sys/bus/pci/rescan; touch /tmp/found; } & # after a look for partitions
		within 180 test -b /dev/vda
		sleep 1
		test ! -e /tmp/found
	`)
	r.ep(`
		[ $(wc -l </tmp/vblk.err) = $(cat /tmp/told) ]
		kill -CONT $(cat /tmp/vblk.pid)
		within 180 sh -c 'tail -n +$(($(cat /tmp/told) + 1)) /tmp/vblk.err | grep "msg=event.*type=4"'
	`)
	r.rc("within 180 test -e /tmp/found")
	r.counted(t, func() { r.rc(strings.Replace(verify, "--size=32m", "--size=8m", 1)) })
	r.rc("echo 1 >/sys/block/vda/device/../remove")
	r.stopServing()
}
