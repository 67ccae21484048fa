package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// TestMain fails the package when guests leave descriptors or goroutines
// behind.
func TestMain(m *testing.M) {
	fdsBefore, goroutinesBefore := openFiles(), runtime.NumGoroutine()
	code := m.Run()
	if code == 0 && !settles(func() bool {
		return len(openFiles()) <= len(fdsBefore) && runtime.NumGoroutine() <= goroutinesBefore
	}) {
		stacks := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "left behind: descriptors %v (before: %v)\n%s\n",
			openFiles(), fdsBefore, stacks[:runtime.Stack(stacks, true)])
		code = 1
	}
	os.Exit(code)
}

// openFiles lists what the descriptors of this process lead to, apart from the
// runtime's own.
func openFiles() []string {
	links, _ := filepath.Glob("/proc/self/fd/*")
	var files []string
	for _, l := range links {
		target, err := os.Readlink(l)
		if err != nil || target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" ||
			target == "anon_inode:[pidfd]" {
			continue
		}
		files = append(files, target)
	}
	return files
}

// settles waits until the condition holds, for a minute.
func settles(condition func() bool) bool {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if condition() {
			return true
		}
	}
	return false
}
