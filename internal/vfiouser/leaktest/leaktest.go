// Package leaktest finds descriptors, mappings and goroutines that a test has
// left behind.
package leaktest

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// patience is how long things that end by themselves may take.
const patience = 5 * time.Second

// checking is whether a check has begun that has not ended.
var checking bool

// Check compares what the process holds at the end of the test, after the
// cleanups registered later, with what it holds now. Within a check it does nothing:
// what the test has already may still be starting, so that nothing is known of what
// it holds, and the check under way ends later and sees all. Tests that use it must
// not run in parallel.
func Check(t testing.TB) {
	t.Helper()
	if checking {
		return
	}
	// The runtime opens its poller when it is first needed, and keeps it.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	checking = true
	before := take()
	t.Cleanup(func() {
		defer func() { checking = false }()
		var leak string
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if leak = take().beyond(before); leak == "" {
				return
			}
		}
		t.Errorf("left behind: %s", leak)
		if !strings.HasPrefix(leak, "goroutines") {
			return
		}
		stacks := make([]byte, 1<<20)
		t.Logf("%s", stacks[:runtime.Stack(stacks, true)])
	})
}

type holdings struct {
	fds        map[string]int // what they stand for
	mappings   int            // shared, of files
	goroutines int
}

func take() holdings {
	h := holdings{fds: map[string]int{}, goroutines: runtime.NumGoroutine()}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		// The directory's own descriptor is gone by now.
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			h.fds[to]++
		}
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return h
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && strings.HasSuffix(fields[1], "s") {
			h.mappings++
		}
	}
	return h
}

// beyond says what h has more than before, or nothing.
func (h holdings) beyond(before holdings) string {
	for to, n := range h.fds {
		if n > before.fds[to] {
			return fmt.Sprintf("descriptors: %d of %s, %d before", n, to, before.fds[to])
		}
	}
	if h.mappings > before.mappings {
		return fmt.Sprintf("mappings: %d, %d before", h.mappings, before.mappings)
	}
	if h.goroutines > before.goroutines {
		return fmt.Sprintf("goroutines: %d, %d before", h.goroutines, before.goroutines)
	}
	return ""
}
