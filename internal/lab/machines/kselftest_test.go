package machines

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVMKselftest runs the kernel's own test of endpoints, on a root complex that
// has room for all the interrupts that it asks for.
func TestVMKselftest(t *testing.T) {
	// It moves the ranges of all BARs while the link is up.
	r := start(t, "arm64", func(c *Config) { c.TrapBARs = 0x3f })
	// BARs of less than the default size: each access of the test is a message.
	r.ep(`BARS="65536 16384 16384 16384 16384 32768" sh epf-test start`)
	out, status := r.tryRC(`
		insmod pci_endpoint_test.ko
		within 30 test -c /dev/pci-endpoint-test.0
		./kselftest
	`)
	t.Log(out)
	require.Zero(t, status)
	require.Contains(t, out, "fail:0 ")
	// The test registers are in BAR 0, whose ranges it does not move.
	skipped := regexp.MustCompile(`# SKIP (.*)`).FindAllStringSubmatch(out, -1)
	require.Equal(t, [][]string{{"# SKIP BAR is test register space", "BAR is test register space"}}, skipped)
	require.Contains(t, out, "pass:22 ")
}
