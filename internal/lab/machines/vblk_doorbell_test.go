package machines

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// Without an ITS there is the controller's own doorbell, if it takes what virtio-pci
// writes; otherwise memory is looked at. check says which.
func TestVMVblkWithoutITS(t *testing.T) {
	for _, narrow := range []bool{true, false} {
		t.Run(fmt.Sprintf("16 bits %v", narrow), func(t *testing.T) {
			r := vblk(t, "newest", func(c *Config) {
				c.EP.Cmdline, c.Doorbell16 = "pcie_lab_ep.its=0", narrow
			})
			said := r.ep("./vblk-ep check --disk /dev/vda2 2>&1")
			r.serveOn("--disk /dev/vda2,queues=2")
			before := r.Lab.Stats().Doorbells
			r.rc(verify)
			rang := r.Lab.Stats().Doorbells - before
			t.Logf("%d doorbells", rang)
			if narrow {
				require.Contains(t, said, "one interrupt, which wakes all queues")
				require.Positive(t, rang)
			} else {
				require.Contains(t, said, "none, memory is looked at")
				require.Zero(t, rang)
			}
			r.rc("echo 1 >/sys/block/vda/device/../remove")
			if narrow {
				r.stopServing()
			}
		})
	}
}
