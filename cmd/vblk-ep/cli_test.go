package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc/epfuser"
)

func newImage(t *testing.T, size int64) string {
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	return path
}

// cli runs a command line and returns its exit code and what it printed.
func cli(args ...string) (code int, out, errOut string) {
	var o, e bytes.Buffer
	code = run(args, &o, &e)
	return code, o.String(), e.String()
}

func TestSizesAreWrittenExactly(t *testing.T) {
	require.Equal(t, "1 GiB", formatSize(1<<30))
	require.Equal(t, "1536 MiB", formatSize(1536<<20))
	require.Equal(t, "513 bytes", formatSize(513))
}

func TestDiskOptions(t *testing.T) {
	spec, err := parseDisk("/dev/x,readonly,serial=A,,B,queues=4,queue-size=512,cache=writethrough,direct=off,block-size=4K")
	require.NoError(t, err)
	require.Equal(t, "/dev/x", spec.path)
	require.True(t, spec.open.ReadOnly)
	require.Equal(t, "A,B", spec.offer.Serial)
	require.Equal(t, 4, spec.offer.Queues)
	require.Equal(t, 512, spec.offer.QueueSize)
	require.True(t, spec.offer.WriteThrough)
	require.EqualValues(t, 4096, spec.open.BlockSize)

	spec, err = parseDisk("odd,,name.img,readonly=off")
	require.NoError(t, err)
	require.Equal(t, "odd,name.img", spec.path)
	require.False(t, spec.open.ReadOnly)
}

// One sentence that names the flag and the mend, and the exit code of a wrong
// command line; nothing is printed to standard output.
func TestWrongCommandLines(t *testing.T) {
	image := newImage(t, 1<<20)
	for _, c := range []struct{ args, want string }{
		{"", "Usage:"},
		{"frobnicate", "choose serve, check, bench or version"},
		{"serve", "add --disk PATH"},
		{"serve --disk", "flag needs an argument"},
		{"serve --disk IMAGE,qeues=4", `unknown option "qeues": choose block-size, cache`},
		{"serve --disk IMAGE,queues=0", "write a whole number above 0"},
		{"serve --disk IMAGE,queues=1025", "choose 1 to 1024"},
		{"serve --disk IMAGE,queue-size=100", "choose a power of two from 4 to 32768"},
		{"serve --disk IMAGE,cpus=x", "each comma twice: 0,,2-3"},
		{"serve --disk IMAGE,cpus=1023", "processor 1023 is not there"},
		{"serve --disk IMAGE,cache=none", "choose writeback, writethrough"},
		{"serve --disk IMAGE,direct=maybe", "choose auto, off, on"},
		{"serve --disk IMAGE,block-size=3K", "choose native, 512, 1K, 2K or 4K"},
		{"serve --disk IMAGE,serial=123456789012345678901", "choose at most 20"},
		{"serve --disk ,readonly", "names no disk"},
		{"serve --disk IMAGE --io fast", "choose auto, io_uring or plain"},
		{"serve --disk IMAGE --poll 0", "choose auto, off, always or a time above 0 as in 50us"},
		{"serve --disk IMAGE --subsystem 1af4", "two hexadecimal numbers"},
		{"serve --disk IMAGE --epc pci:0", "write --epc vfio-user:[SOCKET]"},
		{"serve --disk IMAGE --epc vfio-user:x,fast", `unknown option "fast": choose trap-free`},
		{"serve --disk IMAGE,ring=torn", "choose both, packed, split"},
		{"serve --disk IMAGE --no-such", "unknown option --no-such: see 'vblk-ep serve --help'"},
		{"serve IMAGE", "disks are named with --disk"},
		{"check --disk IMAGE extra", "unexpected argument"},
		{"version --yaml", "unknown option --yaml"},
		{"version extra", `unexpected argument "extra"`},
	} {
		code, out, errOut := cli(strings.Fields(strings.ReplaceAll(c.args, "IMAGE", image))...)
		require.Equal(t, exitUsage, code, c.args)
		require.Empty(t, out, c.args)
		require.Contains(t, errOut, c.want, c.args)
		if c.args != "" {
			require.Equal(t, 1, strings.Count(errOut, "\n"), "one sentence: %q", errOut)
		}
	}
}

// Errors that come together are a line each, whoever put them together and whatever was
// put around them.
func TestErrorsAreALineEach(t *testing.T) {
	one, two, three := errors.New("one"), errors.New("two: more"), errors.New("three")
	for _, c := range []struct {
		err   error
		lines []string
	}{
		{one, []string{"one"}},
		{fmt.Errorf("%w: mend it", one), []string{"one: mend it"}},
		{fmt.Errorf("%w: %w", one, two), []string{"one: two: more"}},
		{errors.Join(one, two), []string{"one", "two: more"}},
		{joinErrors(one, nil, errors.Join(two, three)), []string{"one", "two: more", "three"}},
		{fmt.Errorf("/dev/x: %w", joinErrors(one)), []string{"/dev/x: one"}},
		{fmt.Errorf("/dev/x: %w", joinErrors(one, two)), []string{"/dev/x: one", "/dev/x: two: more"}},
		{errors.Join(fmt.Errorf("a: %w", errors.Join(one, joinErrors(two))), three), []string{"a: one", "a: two: more", "three"}},
		{fmt.Errorf("%w: %w", three, errors.Join(one, two)), []string{"three: one", "three: two: more"}},
	} {
		var out bytes.Buffer
		require.Equal(t, exitFailed, report(c.err, &out))
		require.Equal(t, "vblk-ep: "+strings.Join(c.lines, "\nvblk-ep: ")+"\n", out.String())
	}
	var out bytes.Buffer
	require.Equal(t, exitUsage, report(joinErrors(one, usageError("two")), &out))
	require.Equal(t, "vblk-ep: one\nvblk-ep: two\n", out.String())
}

func TestHelpIsNotAnError(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"serve", "--help"}, {"check", "-h"}, {"version", "--help"}} {
		code, out, errOut := cli(args...)
		require.Equal(t, exitOK, code)
		require.Contains(t, out, "Usage:")
		require.Empty(t, errOut)
	}
	_, out, _ := cli("serve", "--help")
	for name := range diskOptions {
		require.Contains(t, out, "  "+name, "every option of a disk is in the help")
	}
}

func TestCheckTellsWhatWouldBeExported(t *testing.T) {
	image := newImage(t, 64<<20)
	socket := filepath.Join(t.TempDir(), "slot.sock")
	code, out, errOut := cli("check", "--disk", image+",queues=2,serial=S1,readonly", "--epc", "vfio-user:"+socket, "--json")
	require.Equal(t, exitOK, code, errOut)
	var answer struct {
		Disks []verdict `json:"disks"`
	}
	require.NoError(t, json.Unmarshal([]byte(out), &answer))
	require.Len(t, answer.Disks, 1)
	require.True(t, answer.Disks[0].OK)
	e := answer.Disks[0].Export
	require.Equal(t, int64(64<<20), e.Bytes)
	require.Equal(t, "S1", e.Serial)
	require.Equal(t, 2, e.Queues)
	require.True(t, e.ReadOnly)
	require.Contains(t, strings.Fields(e.Features), "RO")
	require.NoFileExists(t, socket, "check exports nothing")
}

func TestCheckTellsWhatTrapFreeCosts(t *testing.T) {
	code, out, errOut := cli("check", "--disk", newImage(t, 1<<20), "--epc", "vfio-user:,trap-free")
	require.Equal(t, exitOK, code, errOut)
	for _, want := range []string{"RING_PACKED", "lost      FLUSH: ", "lost      EVENT_IDX: ", ", trap-free\n"} {
		require.Contains(t, out, want)
	}
	require.NotRegexp(t, `features .*bit \d`, out, "bits without a meaning are not listed")
}

func TestCheckTellsEveryProblem(t *testing.T) {
	dir := t.TempDir()
	odd := newImage(t, 1000)
	live := filepath.Join(dir, "live.sock")
	l, err := net.Listen("unix", live)
	require.NoError(t, err)
	defer l.Close()

	code, out, errOut := cli("check", "--disk", filepath.Join(dir, "none.img"), "--disk", dir, "--disk", odd,
		"--epc", "vfio-user:"+live)
	require.Equal(t, exitFailed, code)
	require.NotContains(t, out, "ready")
	for _, want := range []string{"none.img", dir, odd, live} {
		require.Contains(t, errOut, want)
	}

	long := "vfio-user:/" + strings.Repeat("x", 200)
	code, _, errOut = cli("check", "--disk", newImage(t, 1<<20), "--epc", long)
	require.Equal(t, exitFailed, code)
	require.Contains(t, errOut, "long")
}

// What keeps the controller from being asked is a problem of each disk.
func TestCheckTellsThatThereIsNoController(t *testing.T) {
	code, out, errOut := cli("check", "--json", "--disk", newImage(t, 1<<20), "--disk", "null:1G", "--epc", "no-such-controller")
	require.Equal(t, exitFailed, code)
	require.Equal(t, 1, strings.Count(errOut, "\n"), errOut)
	var answer struct {
		Disks []verdict `json:"disks"`
	}
	require.NoError(t, json.Unmarshal([]byte(out), &answer))
	require.Len(t, answer.Disks, 2)
	for _, d := range answer.Disks {
		require.False(t, d.OK)
		require.Equal(t, "vblk-ep: "+strings.Join(d.Problems, "\n")+"\n", errOut)
	}
}

// buildProgram returns the real program, for what only a process of its own shows.
func buildProgram(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "vblk-ep")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	return path
}

type process struct {
	*exec.Cmd
	errOut bytes.Buffer
}

// startServer runs serve and waits until it has announced itself.
func startServer(t *testing.T, program string, args ...string) (*process, map[string]any) {
	p := &process{Cmd: exec.Command(program, append([]string{"serve", "--json"}, args...)...)}
	p.Stderr = &p.errOut
	pipe, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	var announced map[string]any
	require.NoError(t, json.NewDecoder(pipe).Decode(&announced), "stderr: %s", &p.errOut)
	return p, announced
}

func TestServeStartsAndStops(t *testing.T) {
	program, image := buildProgram(t), newImage(t, 16<<20)
	socket := filepath.Join(t.TempDir(), "slot.sock")
	p, announced := startServer(t, program, "--disk", image, "--epc", "vfio-user:"+socket)
	exports := announced["exports"].([]any)
	require.Len(t, exports, 1)
	require.Equal(t, socket, exports[0].(map[string]any)["socket"])
	conn, err := net.Dial("unix", socket)
	require.NoError(t, err)
	conn.Close()

	second := exec.Command(program, "serve", "--disk", image, "--epc", "vfio-user:"+socket)
	out, err := second.CombinedOutput()
	require.Error(t, err, "the disk and the socket are taken")
	require.Equal(t, exitFailed, second.ProcessState.ExitCode())
	require.Contains(t, string(out), image)
	require.Contains(t, string(out), socket)

	require.NoError(t, p.Process.Signal(unix.SIGHUP))
	require.NoError(t, p.Process.Signal(unix.SIGTERM))
	require.NoError(t, p.Wait(), "stderr: %s", &p.errOut)
	require.Empty(t, p.errOut.String(), "quiet by default")
	require.NoFileExists(t, socket)
}

// Who starts the server hears when it serves and when it stops, and may be gone by then.
func TestSupervisorIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	supervisor, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer supervisor.Close()
	require.NoError(t, supervisor.SetReadDeadline(time.Now().Add(time.Minute)))
	hear := func() string {
		state := make([]byte, 64)
		n, err := supervisor.Read(state)
		require.NoError(t, err)
		return string(state[:n])
	}
	t.Setenv("NOTIFY_SOCKET", path)
	start := func() *process {
		p, _ := startServer(t, buildProgram(t), "--disk", "null:1M", "--epc", "vfio-user:"+filepath.Join(t.TempDir(), "s"))
		require.Equal(t, "READY=1", hear())
		return p
	}
	p := start()
	require.NoError(t, p.Process.Signal(unix.SIGTERM))
	require.Equal(t, "STOPPING=1", hear())
	require.NoError(t, p.Wait(), "stderr: %s", &p.errOut)
	require.Empty(t, p.errOut.String())

	p = start()
	supervisor.Close()
	require.NoError(t, p.Process.Signal(unix.SIGTERM))
	require.NoError(t, p.Wait(), "stderr: %s", &p.errOut)
	require.Contains(t, p.errOut.String(), "the supervisor cannot be told")
}

// SIGHUP is for the sizes of disks, and harmless when nobody looks at them yet: here the
// server waits until somebody reads what it announces.
func TestHangupDoesNotKillAServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "slot.sock")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize())
	require.NoError(t, err)
	_, err = w.Write(make([]byte, size))
	require.NoError(t, err)

	p := exec.Command(buildProgram(t), "serve", "--disk", newImage(t, 1<<20), "--epc", "vfio-user:"+socket)
	var errOut bytes.Buffer
	p.Stdout, p.Stderr = w, &errOut
	require.NoError(t, p.Start())
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	w.Close()
	require.Eventually(t, func() bool { _, err := os.Stat(socket); return err == nil }, 10*time.Second, time.Millisecond)
	require.NoError(t, p.Process.Signal(unix.SIGHUP))
	go func() { _, _ = io.Copy(io.Discard, r) }()
	require.NoError(t, p.Process.Signal(unix.SIGTERM))
	require.NoError(t, p.Wait(), "stderr: %s", &errOut)
}

func TestServeSeveralDisks(t *testing.T) {
	program := buildProgram(t)
	socket := filepath.Join(t.TempDir(), "slot.sock")
	p, announced := startServer(t, program, "--disk", newImage(t, 1<<20), "--disk", "null:1G",
		"--disk", newImage(t, 2<<20)+",readonly", "--epc", "vfio-user:"+socket)
	require.Len(t, announced["exports"], 3)
	for i := range 3 {
		require.FileExists(t, numbered(socket, i))
	}
	require.NoError(t, p.Process.Signal(unix.SIGINT))
	done := make(chan error, 1)
	go func() { done <- p.Wait() }()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("serve does not stop")
	}
}

func TestSlotPathsFollowFromTheDisk(t *testing.T) {
	require.Equal(t, "nvme0n1p2", slotName("/dev/nvme0n1p2"))
	require.Equal(t, "disk", slotName("images/disk.img"))
	require.Equal(t, "null", slotName("null:1G"))
	require.Equal(t, "/run/a.sock", numbered("/run/a.sock", 0))
	require.Equal(t, "/run/a-2.sock", numbered("/run/a.sock", 2))
}

// No two functions have the same name, whatever the disks are called.
func TestFunctionNamesDiffer(t *testing.T) {
	for _, c := range []struct{ disks, want string }{
		{"x/a.img y/a.img z/a-1.img", "a a-1 a-1-1"},
		{"z/a-1.img x/a.img y/a.img", "a-1 a a-2"},
		{"null:1M null:2M null:3M", "null null-1 null-2"},
	} {
		var disks []diskSpec
		for path := range strings.FieldsSeq(c.disks) {
			disks = append(disks, diskSpec{path: path})
		}
		require.Equal(t, strings.Fields(c.want), functionNames(disks, ""))
		require.Len(t, slices.Compact(slices.Sorted(slices.Values(defaultSockets(disks)))), len(disks))
	}
}

// Of several --epc the last one counts, with nothing of those before.
func TestTheLastSlotCounts(t *testing.T) {
	for _, c := range []struct {
		flags []string
		want  slotFlag
	}{
		{[]string{"vfio-user:"}, slotFlag{given: true}},
		{[]string{"CTRL,keep", "vfio-user:s"}, slotFlag{given: true, slot: virtualSlot{socket: "s"}}},
		{[]string{"vfio-user:a,trap-free,doorbell=16", "vfio-user:b"}, slotFlag{given: true, slot: virtualSlot{socket: "b"}}},
		{[]string{"vfio-user:a,trap-free", ",dma=off"}, slotFlag{given: true, real: &epfuser.Options{NoDMA: true}}},
	} {
		var s slotFlag
		for _, text := range c.flags {
			require.NoError(t, s.Set(text))
		}
		require.Equal(t, c.want, s, c.flags)
	}
}
