package machines

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Without an ITS there is the controller's own doorbell. It is used if its driver says
// that it takes what virtio-pci writes; otherwise memory is looked at. check says which.
func TestVMVblkWithoutITS(t *testing.T) {
	for name, narrow := range map[string]bool{"32 bits": false, "16 bits": true} {
		t.Run(name, func(t *testing.T) {
			r := vblk(t, "newest", func(c *Config) { c.EP.Cmdline, c.Doorbell16 = "pcie_lab_ep.its=0", narrow })
			says := "none, memory is looked at"
			if narrow {
				says = "one interrupt, which wakes all queues"
			}
			require.Contains(t, r.ep("vblk-ep check --disk /dev/vda2 2>&1"), says)
			r.serveOn("--disk /dev/vda2")
			before := r.Lab.Stats().Doorbells
			r.rc(strings.Replace(verify, "--size=32m", "--size=8m", 1))
			rang := r.Lab.Stats().Doorbells - before
			require.Equal(t, narrow, rang > 0, "%d doorbells", rang)
			r.rc("echo 1 >/sys/block/vda/device/../remove")
			r.stopServing()
		})
	}
}
