package machines

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// write is a script that writes 4 MiB to a disk of the root complex, and flushes; read
// one that reads them, once the disk is there. Both print the same.
func write(disk string) string {
	return `
		dd if=/dev/urandom of=/tmp/kept bs=1M count=4 status=none
		dd if=/tmp/kept of=` + disk + ` bs=1M oflag=direct conv=fsync status=none
		sha256sum </tmp/kept
	`
}

func read(disk string) string {
	return `
		within 180 test -b ` + disk + `
		dd if=` + disk + ` bs=1M count=4 iflag=direct status=none | sha256sum
	`
}

// busy has a disk of the root complex read and written, beyond what write wrote, and
// returns when there is I/O.
func (r *rig) busy(disk string) {
	r.t.Helper()
	before := r.Lab.Stats().DMATransfers
	r.rc(`
		fio --name=load --filename=` + disk + ` --offset=64m --size=64m --rw=randrw --bs=16k --direct=1 \
			--ioengine=io_uring --iodepth=8 --time_based --runtime=600 </dev/null >/tmp/load 2>&1 &
	`)
	require.Eventually(r.t, func() bool { return r.Lab.Stats().DMATransfers > before+50 }, 3*time.Minute, 10*time.Millisecond, "there is I/O")
}

// TestVMFaults breaks the link, resets one guest and kills the other in the middle
// of I/O, one after the other. Each time the other side survives, and the disk is
// back afterwards with what had been flushed.
func TestVMFaults(t *testing.T) {
	r := nvmeWith(t, func(c *Config) {
		c.RC.Reboot = true
		c.RC.Cmdline = "nvme_core.io_timeout=20 nvme_core.admin_timeout=20"
	})
	const disk = "/dev/nvme0n1"
	kept, read := r.rc(write(disk)), read(disk)
	busy := func(t *testing.T) {
		t.Helper()
		(&rig{t, r.Pair}).busy(disk)
	}

	t.Run("the root complex is reset", func(t *testing.T) {
		r := &rig{t, r.Pair}
		busy(t)
		require.NoError(t, r.ResetRC(t.Context()))
		require.Equal(t, kept, r.rc(read))
	})
	t.Run("DMA stands still, and transfers fail", func(t *testing.T) {
		r := &rig{t, r.Pair}
		r.Lab.StallDMA(true)
		r.rc("dd if=/dev/nvme0n1 of=/tmp/slow bs=4k count=1 iflag=direct status=none </dev/null >/dev/null 2>&1 & sleep 1")
		r.Lab.StallDMA(false)
		require.Equal(t, kept, r.rc(read))
		// One is the fetch of the command, the other its data: either way a command fails.
		r.Lab.FailDMA(2)
		_, _ = r.tryRC("dd if=/dev/nvme0n1 of=/dev/null bs=4k count=1 iflag=direct status=none")
		require.Equal(t, kept, r.rc(read))
	})
	t.Run("the link drops", func(t *testing.T) {
		r := &rig{t, r.Pair}
		busy(t)
		r.Lab.DropLink(true)
		r.rc("sleep 3; setpci -s 1:0.0 0.l | grep -x ffffffff")
		r.Lab.DropLink(false)
		r.rc(`
			echo 1 >/sys/bus/pci/devices/0000:01:00.0/remove
			test ! -e /dev/nvme0n1
			echo 1 >/sys/bus/pci/rescan
		`)
		require.Equal(t, kept, r.rc(read))
	})
	t.Run("the endpoint is killed", func(t *testing.T) {
		r := &rig{t, r.Pair}
		busy(t)
		r.KillEP()
		r.rc(`
			within 180 sh -c 'setpci -s 1:0.0 0.l | grep -x ffffffff'
			killall fio
			echo 1 >/sys/bus/pci/devices/0000:01:00.0/remove
			test ! -e /dev/nvme0n1
		`)
		require.NoError(t, r.StartEP())
		r.ep("sh epf-nvme start /dev/vda")
		require.Equal(t, kept, r.rc(read))
	})
	t.Run("the root complex is killed", func(t *testing.T) {
		r := &rig{t, r.Pair}
		busy(t)
		r.KillRC()
		r.ep("true")
		require.NoError(t, r.StartRC())
		require.Equal(t, kept, r.rc(read))
	})
}

// TestVMForgetful resets a root complex whose endpoint has a controller that loses what
// it was told: its driver has the function do it again, and the disk is back.
func TestVMForgetful(t *testing.T) {
	r := nvmeWith(t, func(c *Config) {
		c.Forgetful = true
		c.RC.Reboot = true
	})
	kept := r.rc(write("/dev/nvme0n1"))
	for range 2 {
		require.NoError(t, r.ResetRC(t.Context()))
		require.Equal(t, kept, r.rc(read("/dev/nvme0n1")))
	}
}
