package machines

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVMUserFunction runs the selftest of endpoint functions in user space on the
// endpoint, whose link is not started, and takes the function away while a program
// has its device open. Behind an IOMMU memory need not be contiguous, so more of it can
// be asked for than there is.
func TestVMUserFunction(t *testing.T) {
	for name, iommu := range map[string]bool{"direct": false, "IOMMU": true} {
		t.Run(name, func(t *testing.T) {
			userFunction(t, start(t, "newest", func(c *Config) { c.IOMMU = iommu }))
		})
	}
}

func userFunction(t *testing.T, r *rig) {
	r.ep("sh epf-user start")
	out := r.ep("./epf_user_test")
	t.Log(out)
	require.Regexp(t, `# Totals: pass:12 fail:0 xfail:0 xpass:0 skip:0 error:0`, out)
	for range 2 {
		r.ep(`
			exec 3<>/dev/pci-epf-user/pci_epf_user.0
			sh epf-user stop
			test ! -e /dev/pci-epf-user/pci_epf_user.0
			exec 3<&-
			sh epf-user start
			test -c /dev/pci-epf-user/pci_epf_user.0
		`)
	}
	// A function has one controller. What would be a second one is refused, whether it comes
	// first or later, and the function can be bound again.
	r.ep(`
		sh epf-user stop
		(
			cd /sys/kernel/config/pci_ep
			controller=$(echo controllers/*) function=functions/pci_epf_user/test
			device=/dev/pci-epf-user/pci_epf_user.0
			refused() { if ln -s "$PWD/$controller" $function/secondary/ 2>/dev/null; then return 1; fi; }
			mkdir $function
			refused
			for again in 1 2; do
				ln -s "$PWD/$function" $controller/test
				test -c $device
				refused
				rm $controller/test
				test ! -e $device
			done
			rmdir $function
		)
		sh epf-user start
		test -c /dev/pci-epf-user/pci_epf_user.0
		sh epf-user stop
	`)
	r.ep(sound)
}

// masked has vectors of MSI-X refused, as controllers do that see that the host has
// masked them. A bit is a vector; the first is 0.
func (r *rig) masked(vectors uint64) {
	r.t.Helper()
	r.ep(fmt.Sprintf("echo %d >/sys/module/pcie_lab_ep/parameters/masked", vectors))
}

// TestVMUserMasked raises vectors that are masked: they come once they are not, and not
// before.
func TestVMUserMasked(t *testing.T) {
	r := vblk(t, "newest")
	r.serveOn("--disk /dev/vda2")
	const one = "dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct status=none"
	r.rc(one)
	for range 3 {
		r.masked(^uint64(0))
		before := r.Lab.Stats()
		r.rc(one + " </dev/null >/dev/null 2>&1 &")
		r.untilBusy(before.DMATransfers, 0) // the request is served
		r.rc("sleep 2; pidof dd")
		require.Zero(t, r.traffic(before).Interrupts)
		r.masked(0)
		r.rc("within 180 sh -c '! pidof dd'")
		require.Positive(t, r.traffic(before).Interrupts)
	}
	r.rc(verify)
	r.rc("echo 1 >/sys/block/vda/device/../remove")
	r.stopServing()
	r.ep(sound)
}

// sound says that the kernel has nothing to complain about.
const sound = "! dmesg | grep -E 'WARNING|BUG|Oops|possible (recursive|circular)|does not stop'"

// TestVMUserUnbind takes the function away from a program that serves it, with transfers
// in flight: those that the DMA engine is at, which stands still, and those that the
// processor makes.
func TestVMUserUnbind(t *testing.T) {
	r := vblk(t, "newest", func(c *Config) { c.RC.Reboot = true })
	const disk = "/dev/disk"
	options, port := "--disk /dev/vda2", 1
	r.serveOn(options)
	kept := r.rc(at(port) + write(disk))
	again := func() {
		r.serveAgain(options)
		require.NoError(t, r.ResetRC(t.Context()))
		port++ // what was there has gone for good
		require.Equal(t, kept, r.rc(at(port)+read(disk)))
	}
	for _, byDMA := range []bool{true, false} {
		if !byDMA {
			options += " --epc ,dma=off"
			r.ep("kill -TERM $(cat /tmp/vblk.pid); within 180 test ! -d /proc/$(cat /tmp/vblk.pid)")
			again()
		}
		r.rc("dd if=" + disk + " of=/dev/null bs=1M iflag=direct </dev/null >/dev/null 2>&1 & sleep 1")
		r.Lab.StallDMA(byDMA)
		r.ep(`
			sleep 1
			cd /sys/kernel/config/pci_ep/controllers/*
			echo 0 >start
			find . -maxdepth 1 -type l -exec rm {} +
			test -z "$(ls /dev/pci-epf-user 2>/dev/null)"
			within 180 test ! -d /proc/$(cat /tmp/vblk.pid) || { cat /tmp/vblk.err; exit 1; }
			cd ../../functions/pci_epf_user
			for f in *; do [ ! -d $f ] || rmdir $f; done
		`)
		r.Lab.StallDMA(false)
		r.ep(sound)
		again()
	}
	r.rc(fmt.Sprintf(remove, port))
	r.stopServing()
	r.ep(sound)
}
