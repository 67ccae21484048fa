package machines

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// Kernels are the kernels of the two guests: the endpoint's own, and a stock one
// with the kernel's own endpoint test beside it.
type Kernels struct {
	ep, rc vm.Kernel

	// TestDriver and TestProgram are files on this machine: the driver
	// pci_endpoint_test for the root complex's kernel, and the kselftest. Without
	// headers in the distribution's archive there are none.
	TestDriver, TestProgram string

	// UserTest is the selftest of functions in user space, for the endpoint.
	UserTest string
}

// headless is the stock kernel whose headers the archive has no more.
const headless = "debian12"

// Build makes both kernels, or finds them in the cache: that of the endpoint, and
// what belongs to the root complex's stock kernel of this name (newest, debian12,
// arm64). It runs in the repository.
func Build(ctx context.Context, rcName string) (Kernels, error) {
	stock, err := vm.FindKernel(rcName)
	if err != nil {
		return Kernels{}, err
	}
	ep, err := recipe(ctx, "ep")
	if err != nil {
		return Kernels{}, err
	}
	release, err := os.ReadFile(filepath.Join(ep, "release"))
	if err != nil {
		return Kernels{}, err
	}
	k := Kernels{
		ep:       vm.OwnKernel("ep", "arm64", filepath.Join(ep, "Image"), strings.TrimSpace(string(release))),
		rc:       stock,
		UserTest: filepath.Join(ep, "pci_epf_user_test"),
	}
	if rcName == headless {
		return k, nil
	}
	rc, err := recipe(ctx, "rc", rcName)
	k.TestDriver = filepath.Join(rc, "pci_endpoint_test.ko")
	k.TestProgram = filepath.Join(rc, "pci_endpoint_kselftest")
	return k, err
}

// Repository returns the folder of the repository that the working directory is
// in.
func Repository() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", err
	}
	mod := strings.TrimSpace(string(out))
	if filepath.Base(mod) != "go.mod" {
		return "", fmt.Errorf("not in the repository")
	}
	return filepath.Dir(mod), nil
}

// recipe runs scripts/kernel, which prints a folder.
func recipe(ctx context.Context, what ...string) (string, error) {
	root, err := Repository()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "scripts/kernel"), what...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("scripts/kernel %s: %w", strings.Join(what, " "), err)
	}
	return strings.TrimSpace(out.String()), nil
}
