package guesttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/semaphore"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

const mainPackage = "github.com/vblk-ep/vblk-ep/cmd/vblk-ep"

// scratch holds the programs under test.
var scratch string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if scratch, err = os.MkdirTemp("", "vblk-ep-guests-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(scratch) }()
		goroutines := runtime.NumGoroutine()
		code := m.Run()
		if code == 0 && !settles(stopTime, func() bool { return runtime.NumGoroutine() <= goroutines }) {
			stacks := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", stacks[:runtime.Stack(stacks, true)])
			return 1
		}
		return code
	}())
}

// A program is a build of vblk-ep.
type program struct {
	name  string
	flags []string
	env   []string
	once  sync.Once
	err   error
}

var (
	// checked has the race detector; shipped is built as the Makefile does.
	checked = &program{name: "vblk-ep-race", flags: []string{"-race"}}
	shipped = &program{name: "vblk-ep", flags: []string{"-trimpath"}, env: []string{"CGO_ENABLED=0"}}
)

// path returns the built program.
func (p *program) path(t *testing.T) string {
	t.Helper()
	file := filepath.Join(scratch, p.name)
	p.once.Do(func() {
		args := append([]string{"build", "-o", file}, p.flags...)
		build := exec.Command("go", append(args, mainPackage)...)
		build.Env = append(os.Environ(), p.env...)
		if out, err := build.CombinedOutput(); err != nil {
			p.err = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	require.NoError(t, p.err)
	return file
}

// maxGuests is how many guests run at a time.
const maxGuests = 2

var guests = semaphore.NewWeighted(maxGuests)

// parallel lets the test run beside others once there is room for its guests:
// how many it runs at a time.
func parallel(t *testing.T, n int64) {
	t.Helper()
	t.Parallel()
	require.NoError(t, guests.Acquire(t.Context(), n))
	t.Cleanup(func() { guests.Release(n) })
}

// eachKernel runs the test once for each kernel, side by side. A test has one
// guest at a time.
func eachKernel(t *testing.T, test func(t *testing.T, k vm.Kernel)) {
	t.Helper()
	for _, k := range vm.Kernels() {
		t.Run(k.Name, func(t *testing.T) {
			parallel(t, 1)
			test(t, k)
		})
	}
}

// settles waits until the condition holds.
func settles(limit time.Duration, condition func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if condition() {
			return true
		}
	}
	return condition()
}
