// Package inguest is work for a guest: tests that end in all the ways that the
// harness must tell apart.
package inguest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPasses(t *testing.T) {
	if os.Getpid() == 1 {
		t.Error("the work must not be the first process")
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	t.Logf("on %s", unix.ByteSliceToString(name.Release[:]))
}

func TestFails(t *testing.T) { t.Error("as it should") }

func TestSkips(t *testing.T) { t.Skip("as it should") }

func TestExits(*testing.T) {
	_, _ = os.Stdout.WriteString("--- PASS: TestExits\n")
	os.Exit(0)
}
