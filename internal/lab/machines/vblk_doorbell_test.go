package machines

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Without an ITS memory is looked at. The controller's own doorbell does not say that
// it takes what virtio-pci writes; if it does, it can be asked for. check says which.
func TestVMVblkWithoutITS(t *testing.T) {
	r := vblk(t, "newest", func(c *Config) { c.EP.Cmdline, c.Doorbell16 = "pcie_lab_ep.its=0", true })
	for options, says := range map[string]string{
		"--disk /dev/vda2":                        "none, memory is looked at",
		"--disk /dev/vda2 --epc ,doorbell=shared": "one interrupt, which wakes all queues",
	} {
		require.Contains(t, r.ep("vblk-ep check "+options+" 2>&1"), says)
		r.serveOn(options)
		before := r.Lab.Stats().Doorbells
		r.rc(strings.Replace(verify, "--size=32m", "--size=8m", 1))
		rang := r.Lab.Stats().Doorbells - before
		require.Equal(t, strings.Contains(options, "shared"), rang > 0, "%d doorbells", rang)
		r.rc("echo 1 >/sys/block/vda/device/../remove")
		r.ep(`
			kill -TERM $(cat /tmp/vblk.pid)
			within 180 test ! -d /proc/$(cat /tmp/vblk.pid)
		`)
	}
}
