package machines

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVMFunctions makes the endpoint a device of three functions, and tests each.
// Doorbells are the controller's own, for the machine's ITS is not to be used.
func TestVMFunctions(t *testing.T) {
	r := start(t, "newest", func(c *Config) {
		c.EP.Cmdline = "pcie_lab_ep.its=0"
		c.TrapBARs = 1 << 1 // which the test turns towards the doorbell
	})
	r.ep("FUNCTIONS=3 MSIX=64 sh epf-test start")
	r.rc(`
		insmod pci_endpoint_test.ko
		within 180 test -c /dev/pci-endpoint-test.2
	`)
	require.Equal(t, 3, strings.Count(r.rc("lspci -n -s 1:"), "104c:b500"))

	for n := range 3 {
		r.rc(fmt.Sprintf("[ %d = 0 ] || mv /dev/pci-endpoint-test.%[1]d /dev/pci-endpoint-test.0", n))
		before := r.Lab.Stats().Doorbells
		passed, skipped := r.kselftest("-T BAR_SUBRANGE_TEST -V memcpy")
		require.Equal(t, "12", passed, "function %d", n)
		require.Equal(t, []string{"MSI2 is disabled", "MSI-X65 is disabled"}, skipped)
		require.Greater(t, r.Lab.Stats().Doorbells, before)
	}
}
