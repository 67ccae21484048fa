package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestBinary builds the tests of the package (an import path, or a folder
// relative to the test's own) as a static program for guests of the kernel, to
// be used as [Config].Test. It ends the test if that fails.
func TestBinary(t testing.TB, k Kernel, pkg string) string {
	t.Helper()
	if k == (Kernel{}) {
		k = Kernels()[0]
	}
	out := filepath.Join(t.TempDir(), "guest.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+k.Arch)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("vm: build the tests of %s: %v\n%s", pkg, err, text)
	}
	if found, err := exists(out); !found {
		t.Fatalf("vm: %s has no tests (%v)", pkg, err)
	}
	return out
}

var (
	testPassed = regexp.MustCompile(`(?m)^PASS$`)
	testFailed = regexp.MustCompile(`(?m)^\s*--- FAIL: .*$|^FAIL\b.*$|^panic: .*$`)
	testRan    = regexp.MustCompile(`(?m)^--- PASS: `)
)

// checkTests reads what a test program printed with -test.v. Its exit status
// alone would call a run good in which no test ran, or all were skipped.
func checkTests(output string) error {
	if line := testFailed.FindString(output); line != "" {
		return fmt.Errorf("vm: a test in the guest failed: %s\n%s", line, tail(output, 60))
	}
	if !testPassed.MatchString(output) {
		return fmt.Errorf("vm: the tests in the guest did not finish:\n%s", tail(output, 60))
	}
	if !testRan.MatchString(output) {
		return fmt.Errorf("vm: no test ran in the guest:\n%s", tail(output, 60))
	}
	return nil
}
