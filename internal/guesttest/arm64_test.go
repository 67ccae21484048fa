package guesttest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// TestVMArm64Native runs on arm64 what is written for each machine by itself, and
// where two processors meet in a ring: most endpoints are arm64.
func TestVMArm64Native(t *testing.T) {
	parallel(t, 1)
	for pkg, tests := range map[string]string{
		"internal/shm":   ".",
		"internal/uring": ".",
		"vring":          "Meets|NoLost|WhoLooks|Layout",
	} {
		t.Run(pkg, func(t *testing.T) {
			_, err := vm.Run(t.Context(), vm.Config{
				// If it hangs, its stacks come when three quarters have passed.
				Kernel: vm.ARM64(), Timeout: 10 * time.Minute,
				Test:     vm.TestBinary(t, vm.ARM64(), "github.com/vblk-ep/vblk-ep/"+pkg),
				TestArgs: []string{"-test.run", tests},
			})
			require.NoError(t, err)
		})
	}
}
