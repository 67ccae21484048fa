package guesttest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

const (
	readyTime = 2 * time.Minute // for a server to announce its exports
	stopTime  = 2 * time.Minute // for it to flush and exit
)

// export is what a server announces of a disk.
type export struct {
	Disk          string
	Kind          string
	Bytes         int64
	LogicalBlock  int64 `json:"logical_block_bytes"`
	PhysicalBlock int64 `json:"physical_block_bytes"`
	ReadOnly      bool
	Direct        bool
	IO            string `json:"io"`
	Cache         string
	Serial        string
	Queues        int
	QueueSize     int `json:"queue_size"`
	Socket        string
}

// server is a running "vblk-ep serve".
type server struct {
	exports []export
	trouble bool // the test breaks something, so warnings are expected

	cmd   *exec.Cmd
	idle  int // descriptors while no guest is there
	log   syncBuffer
	ended chan struct{}
	err   error // of Wait; valid when ended is closed
}

// serve starts a server for the disks, each given as --disk wants it, and waits
// for its announcement. The test fails unless the server is stopped, here at the
// end of the test if not before, as stop demands.
func serve(t *testing.T, p *program, disks ...string) *server {
	t.Helper()
	return serveWith(t, p, nil, disks...)
}

// serveWith is serve with more flags.
func serveWith(t *testing.T, p *program, flags []string, disks ...string) *server {
	t.Helper()
	return serveIn(t, p, "", flags, disks...)
}

// serveIn is serveWith for a slot with options.
func serveIn(t *testing.T, p *program, slot string, flags []string, disks ...string) *server {
	t.Helper()
	// A socket's path must be short, which t.TempDir is not.
	dir, err := os.MkdirTemp("", "vblk-ep-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	args := append([]string{"serve", "--verbose", "--json", "--epc", "vfio-user:" + filepath.Join(dir, "slot.sock") + slot}, flags...)
	for _, d := range disks {
		args = append(args, "--disk", d)
	}

	s := &server{cmd: exec.Command(p.path(t), args...), ended: make(chan struct{})}
	s.cmd.Stderr = &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	announcement, err := s.cmd.StdoutPipe()
	require.NoError(t, err)
	started := make(chan error)
	go func() {
		// The parent-death signal is sent when the thread ends that forked.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			<-s.ended
		}
	}()
	require.NoError(t, <-started)
	lines := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(announcement).ReadString('\n')
		lines <- line
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() { s.cleanUp(t) })

	var line string
	select {
	case line = <-lines:
	case <-time.After(readyTime):
	}
	var a struct{ Exports []export }
	require.NoError(t, json.Unmarshal([]byte(line), &a), "announcement %q\n%s", line, &s.log)
	require.Len(t, a.Exports, len(disks))
	s.exports = a.Exports
	s.idle = len(s.descriptors(t))
	return s
}

// devices returns what attaches a guest to all exports.
func (s *server) devices() []string {
	var d []string
	for _, e := range s.exports {
		d = append(d, vm.VFIOUser(e.Socket))
	}
	return d
}

// stop ends the server with SIGTERM, and fails the test unless it had let go of
// all guests, exits with status 0, removes its sockets, and has complained only
// if it may.
func (s *server) stop(t *testing.T) {
	t.Helper()
	assert.True(t, settles(stopTime, func() bool { return len(s.descriptors(t)) <= s.idle }),
		"the server had %d descriptors before its first guest, and now: %v", s.idle, s.descriptors(t))
	s.signal(t, syscall.SIGTERM)
	s.wait(t)
}

// wait waits for the end of a server that was told to stop.
func (s *server) wait(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(stopTime):
		s.quit(t)
		require.Fail(t, "the server did not stop", "%s", s.log.tail(200))
	}
	require.NoError(t, s.err, "%s", s.log.tail(60))
	for _, e := range s.exports {
		assert.NoFileExists(t, e.Socket)
	}
	if !s.trouble {
		assert.Empty(t, s.complaints(), "the server complained")
	}
}

func (s *server) cleanUp(t *testing.T) {
	select {
	case <-s.ended:
	default:
		if t.Failed() {
			s.kill(t)
		} else {
			s.stop(t)
		}
	}
	if t.Failed() {
		t.Logf("the server's log:\n%s", s.log.tail(60))
	}
}

// quit has the server print its stacks and end.
func (s *server) quit(t *testing.T) {
	t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-s.ended:
	case <-time.After(stopTime):
		s.kill(t)
		require.Fail(t, "the server did not print its stacks", "%s", s.log.tail(200))
	}
}

// kill ends the server at once.
func (s *server) kill(t *testing.T) {
	t.Helper()
	_ = s.cmd.Process.Kill()
	select {
	case <-s.ended:
	case <-time.After(stopTime):
		require.Fail(t, "the server cannot be killed")
	}
}

func (s *server) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(sig), "%s", s.log.tail(60))
}

// alive fails the test if the server has ended.
func (s *server) alive(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
		require.Fail(t, "the server has ended", "%v\n%s", s.err, s.log.tail(60))
	default:
	}
}

var complaint = regexp.MustCompile(`(?m)^.*(level=(WARN|ERROR)|DATA RACE|panic:|fatal error:).*$`)

// complaints returns the lines of the log that are worse than information.
func (s *server) complaints() []string {
	return complaint.FindAllString(s.log.String(), -1)
}

// descriptors lists what the server has open.
func (s *server) descriptors(t *testing.T) []string {
	t.Helper()
	s.alive(t)
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", s.cmd.Process.Pid))
	require.NoError(t, err)
	var open []string
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil {
			open = append(open, target)
		}
	}
	return open
}

// memory returns the server's resident memory in bytes, without what it shares
// with its guests: RssAnon and RssFile of proc_pid_status(5). Guest memory is a
// memfd, and so counted in RssShmem.
func (s *server) memory(t *testing.T) int64 {
	t.Helper()
	s.alive(t)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	require.NoError(t, err)
	var total int64
	for _, field := range []string{"RssAnon", "RssFile"} {
		m := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(status)
		require.NotNil(t, m, "%s", status)
		n, err := strconv.ParseInt(string(m[1]), 10, 64)
		require.NoError(t, err)
		total += n << 10
	}
	return total
}

var startedBy = regexp.MustCompile(`(?m)^created by (\S+)`)

// goroutines ends the server with SIGQUIT and returns what its goroutines were
// started by, apart from the Go runtime's own, from the stacks that are printed
// then.
func (s *server) goroutines(t *testing.T) []string {
	t.Helper()
	s.alive(t)
	mark := s.log.Len()
	s.quit(t)
	var names []string
	for _, m := range startedBy.FindAllStringSubmatch(s.log.String()[mark:], -1) {
		if !strings.HasPrefix(m[1], "runtime.") {
			names = append(names, m[1])
		}
	}
	slices.Sort(names)
	return names
}

// syncBuffer is a bytes.Buffer that may be read while it is written to.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *syncBuffer) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Len()
}

// tail returns the last lines.
func (b *syncBuffer) tail(n int) string {
	return tail(b.String(), n)
}
