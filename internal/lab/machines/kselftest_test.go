package machines

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// kselftest runs the kernel's own test of endpoints in the root complex, and
// returns how many of its tests passed and which it skipped.
func (r *rig) kselftest(args string) (passed string, skipped []string) {
	r.t.Helper()
	out, status := r.tryRC(`
		[ -e /sys/module/pci_endpoint_test ] || insmod pci_endpoint_test.ko
		within 180 test -c /dev/pci-endpoint-test.0
		time ./kselftest ` + args)
	r.t.Log(out)
	require.Zero(r.t, status)
	totals := regexp.MustCompile(`# Totals: pass:(\d+) fail:0 xfail:0 xpass:0 skip:(\d+) error:0`).FindStringSubmatch(out)
	require.NotNil(r.t, totals)
	for _, s := range regexp.MustCompile(`# SKIP (.*)`).FindAllStringSubmatch(out, -1) {
		skipped = append(skipped, s[1])
	}
	return totals[1], skipped
}

// TestVMKselftest runs all of it, on a root complex that has room for all the
// interrupts that it asks for.
func TestVMKselftest(t *testing.T) {
	// It moves the ranges of all BARs while the link is up.
	r := start(t, "arm64", func(c *Config) { c.TrapBARs = 0x3f })
	// BARs of less than the default size: each access of the test is a message.
	r.ep(`BARS="65536 16384 16384 16384 16384 32768" sh epf-test start`)
	passed, skipped := r.kselftest("")
	require.Equal(t, "22", passed)
	require.Equal(t, []string{"BAR is test register space"}, skipped, "its ranges are not moved")
}

// TestVMKselftestMapped runs what does not move ranges, on BARs that are mapped into
// a stock 64-bit x86, twice, with the endpoint's function made anew in between. That
// machine has room for one MSI only, without an IOMMU.
func TestVMKselftestMapped(t *testing.T) {
	r := start(t, "newest", nil)
	for range 2 {
		r.ep("MSIX=256 sh epf-test start") // with so many, BAR 0 has two pages
		before := r.Lab.Stats().InboundReads
		passed, skipped := r.kselftest("-T BAR_SUBRANGE_TEST -T DOORBELL_TEST -V memcpy")
		require.Equal(t, "11", passed)
		require.Equal(t, []string{"MSI2 is disabled", "MSI-X257 is disabled"}, skipped)
		// While an INTx is pending, QEMU traps what it has mapped.
		require.Less(t, r.Lab.Stats().InboundReads-before, uint64(16), "memory is mapped")
		r.ep("sh epf-test stop")
		r.rc(`
			for f in /sys/bus/pci/devices/0000:0[1-4]:00.0; do echo 1 >$f/remove; done
			within 180 test ! -e /dev/pci-endpoint-test.0
		`)
	}
}
