package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestWrongBenchCommandLines(t *testing.T) {
	image := newImage(t, 1<<20)
	for _, c := range []struct{ args, want string }{
		{"", "add --disk PATH, or --connect vfio-user:SOCKET"},
		{"--disk IMAGE --connect vfio-user:s", "choose one"},
		{"--connect pci:0", "--connect pci:0: write --connect vfio-user:SOCKET"},
		{"--connect vfio-user:", "write --connect vfio-user:SOCKET"},
		{"--connect vfio-user:s,trap-free", "leave trap-free out"},
		{"--connect vfio-user:s,doorbell=16", "leave doorbell=16 out"},
		{"--connect vfio-user:s --trap-free", "the server is there already"},
		{"--connect vfio-user:s -- --io plain", "the server is there already"},
		{"--disk IMAGE --rw randomread", "choose randread, randrw, randwrite, read, readwrite, rw, write"},
		{"--disk IMAGE --rwmixread 70", "is for mixed workloads: choose --rw randrw or rw"},
		{"--disk IMAGE --rw rw --rwmixread 101", "--rwmixread 101: choose 0 to 100"},
		{"--disk IMAGE --bs 1000", "--bs 1000: choose a multiple of 512"},
		{"--disk IMAGE --bs 4kb", "is not a size: write 4096, 512M or 1G"},
		{"--disk IMAGE --iodepth 0", "--iodepth 0: choose 1 to 32768"},
		{"--disk IMAGE --iodepth-batch-complete-max -1", "or 0 for all there are"},
		{"--disk IMAGE --queues 0", "--queues 0: choose 1 to 1024"},
		{"--disk IMAGE --runtime fast", "is not a time: write 10s, 500ms or 1m"},
		{"--disk IMAGE --runtime 0", "choose times above 0"},
		{"--disk IMAGE --ring torn", "choose packed, split"},
		{"--disk IMAGE --cpus-allowed 3-1", "is not a list of processors: write 0,2-3"},
		{"--disk IMAGE --in-process --server-cpus 0", "leave out one"},
		{"--disk IMAGE --verify", "choose a workload that writes"},
		{"--disk IMAGE,qeues=2", `unknown option "qeues"`},
		{"--disk IMAGE -- --io fast", "choose auto, io_uring or plain"},
		{"--disk IMAGE -- --epc vfio-user:s", "leave out --epc"},
		{"--disk IMAGE extra", "options of serve come after --"},
		{"--disk IMAGE --no-such", "unknown option --no-such: see 'vblk-ep bench --help'"},
	} {
		args := append([]string{"bench"}, strings.Fields(strings.ReplaceAll(c.args, "IMAGE", image))...)
		code, out, errOut := cli(args...)
		require.Equal(t, exitUsage, code, "%s: %s", c.args, errOut)
		require.Empty(t, out, c.args)
		require.Contains(t, errOut, c.want, c.args)
		require.Equal(t, 1, strings.Count(errOut, "\n"), "one sentence: %q", errOut)
	}
	for args, want := range map[string]string{"--help": "vblk-ep bench --", "--disk null:1G -- --help": "vblk-ep serve --"} {
		code, out, _ := cli(append([]string{"bench"}, strings.Fields(args)...)...)
		require.Equal(t, exitOK, code)
		require.Contains(t, out, "Usage:\n  "+want)
	}
}

// Of a read-only workload the disk is not even opened to be written; a queue for
// each lane and the ring format come of themselves.
func TestBenchServesWhatTheLoadNeeds(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--disk", "null:1G"}, "null:1G,readonly"},
		{[]string{"--disk", "null:1G,readonly=off", "--queues", "2"}, "null:1G,queues=2,readonly=off,readonly"},
		{[]string{"--disk", "null:1G", "--rw", "randwrite"}, "null:1G"},
		{[]string{"--disk", "null:1G", "--rw", "rw", "--queues", "4", "--ring", "packed"}, "null:1G,queues=4,ring=packed"},
		{[]string{"--disk", "null:1G,queues=2,ring=both", "--rw", "rw", "--queues", "2", "--ring", "packed"}, "null:1G,queues=2,ring=packed,queues=2,ring=both"},
		{[]string{"--disk", "/,,spring=1,serial=ring=", "--rw", "rw", "--ring", "packed"}, "/,,spring=1,ring=packed,serial=ring="},
		{[]string{"--disk", "null:1G", "--rw", "write", "--ring", "packed", "--trap-free"}, "null:1G"},
		{[]string{"--disk", "null:1G", "--rw", "write", "--iodepth", "300"}, "null:1G,queue-size=512"},
	} {
		var o benchOptions
		require.NoError(t, o.parse(c.args, nil))
		require.Equal(t, []string{"--disk", c.want}, o.serve)
	}
}

// benchJSON runs the real program and returns what --json printed. Where the machine
// is so busy that nothing is done in a moment, it gets more time.
func benchJSON(t *testing.T, program string, args ...string) (r map[string]any) {
	t.Helper()
	for runtime := 300 * time.Millisecond; ; runtime *= 4 {
		require.Less(t, runtime, time.Minute, "it does nothing")
		cmd := exec.Command(program, append([]string{"bench", "--json", "--runtime", runtime.String()}, args...)...)
		var errOut strings.Builder
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		require.NoError(t, err, errOut.String())
		require.Empty(t, errOut.String())
		require.NoError(t, json.Unmarshal(out, &r), "%s", out)
		if r["requests"].(float64) > 100 {
			break
		}
	}
	for _, name := range []string{"iops", "bytes_per_second", "server_cpu_ns_per_request", "client_cpu_ns_per_request", "requests"} {
		require.Positive(t, r[name], name)
	}
	latency := r["latency_ns"].(map[string]any)
	for _, name := range []string{"p50", "p90", "p95", "p99", "p99.9", "p99.99"} {
		require.Positive(t, latency[name], name)
	}
	return r
}

func TestBench(t *testing.T) {
	program, image := buildProgram(t), newImage(t, 32<<20)
	r := benchJSON(t, program, "--disk", "null:1G", "--iodepth", "64", "--queues", "2", "--hipri")
	require.Equal(t, "randread", r["rw"])
	require.Nil(t, r["verified_blocks"])
	require.Zero(t, r["writes"])

	for _, more := range [][]string{
		{"--rw", "randwrite"},
		{"--rw", "rw", "--bs", "64k", "--iodepth", "4", "--ring", "packed"},
		{"--rw", "randrw", "--trap-free"},
		{"--rw", "randrw", "--in-process", "--rwmixread", "20"},
		{"--rw", "write", "--", "--io", "plain"},
	} {
		r := benchJSON(t, program, append([]string{"--disk", image, "--verify"}, more...)...)
		require.Positive(t, r["verified_blocks"], more)
		require.Positive(t, r["writes"], more)
	}

	// What was written is on the disk, as others see it, and reading leaves it alone.
	before, err := os.ReadFile(image)
	require.NoError(t, err)
	require.NotZero(t, strings.Trim(string(before), "\x00"))
	benchJSON(t, program, "--disk", image, "--cpus-allowed", "0", "--server-cpus", "0")
	after, err := os.ReadFile(image)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// A server that runs is loaded, and told from the load.
func TestBenchConnects(t *testing.T) {
	program := buildProgram(t)
	socket := filepath.Join(t.TempDir(), "slot.sock")
	p, _ := startServer(t, program, "--disk", "null:64M", "--epc", "vfio-user:"+socket)
	for range 2 {
		r := benchJSON(t, program, "--connect", "vfio-user:"+socket)
		require.Equal(t, socket, r["connect"])
		require.Nil(t, r["trap_free"])
	}
	code, out, errOut := cli("bench", "--connect", "vfio-user:"+socket, "--rw", "randwrite", "--verify", "--runtime", "100ms")
	require.Equal(t, exitFailed, code)
	require.Empty(t, out)
	require.Contains(t, errOut, "wrong data at ")
	code, _, errOut = cli("bench", "--connect", "vfio-user:"+socket, "--queues", "2", "--hipri")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errOut, "it has 1 queues, not 2")
	code, _, errOut = cli("bench", "--connect", "vfio-user:"+socket, "--size", "1G")
	require.Equal(t, exitFailed, code)
	require.Regexp(t, "^vblk-ep: offset and size end at ", errOut)
	require.NoError(t, p.Process.Signal(unix.SIGTERM))
	require.NoError(t, p.Wait(), "stderr: %s", &p.errOut)
	require.Empty(t, p.errOut.String())

	code, _, errOut = cli("bench", "--connect", "vfio-user:"+socket)
	require.Equal(t, exitFailed, code)
	require.Contains(t, errOut, socket)
}

// A disk that serve refuses is refused, with serve's reasons.
func TestBenchRefusesDisksInUse(t *testing.T) {
	program, image := buildProgram(t), newImage(t, 16<<20)
	startServer(t, program, "--disk", image, "--epc", "vfio-user:"+filepath.Join(t.TempDir(), "slot.sock"))
	out, err := exec.Command(program, "bench", "--disk", image, "--rw", "randwrite", "--runtime", "100ms").CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, exitFailed, exit.ExitCode())
	require.Contains(t, string(out), image)
	require.Equal(t, 1, strings.Count(string(out), "vblk-ep: "), "%s", out)
}

// A server that does not announce itself as it was asked to is not waited for.
func TestBenchEndsAServerThatIsNotUnderstood(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, buildProgram(t), "bench", "--disk", newImage(t, 1<<20), "--", "--json=false")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, exitFailed, cmd.ProcessState.ExitCode(), "%s", out)
	require.Contains(t, string(out), "the server has ended")
	require.Equal(t, 1, strings.Count(string(out), "\n"), "one sentence: %q", out)
}

// Interrupted, it says what it measured, and leaves no server behind.
func TestBenchInterrupted(t *testing.T) {
	cmd := exec.Command(buildProgram(t), "bench", "--disk", "null:1G", "--runtime", "1h", "--json")
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	require.Eventually(t, func() bool { return len(children(t, cmd.Process.Pid)) == 1 }, 10*time.Second, 10*time.Millisecond)
	server := children(t, cmd.Process.Pid)[0]
	require.NoError(t, cmd.Process.Signal(unix.SIGINT))
	err := cmd.Wait()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, exitFailed, exit.ExitCode())
	require.Contains(t, errOut.String(), "interrupted")
	require.NoDirExists(t, filepath.Join("/proc", server))
}

// children lists the processes that pid has started.
func children(t *testing.T, pid int) (list []string) {
	all, err := procfs.AllProcs()
	require.NoError(t, err)
	for _, p := range all {
		if stat, err := p.Stat(); err == nil && stat.PPID == pid {
			list = append(list, strconv.Itoa(p.PID))
		}
	}
	return list
}
