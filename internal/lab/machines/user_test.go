package machines

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVMUserFunction runs the selftest of endpoint functions in user space on the
// endpoint, whose link is not started, and takes the function away while a program
// has its device open.
func TestVMUserFunction(t *testing.T) {
	r := start(t, "newest", nil)
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
	r.ep("sh epf-user stop; ! dmesg | grep -E 'WARNING|BUG|Oops|possible (recursive|circular)'")
}
