package main

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/bench"
)

// fioSays is the part that matters of what fio prints.
func fioSays(side string, iops float64) string {
	other := map[string]string{"read": "write", "write": "read"}[side]
	return fmt.Sprintf(`note: something
{"jobs": [{
	%q: {"iops": 0, "bw_bytes": 0, "lat_ns": {"min": 0}},
	%q: {"iops": %f, "bw_bytes": %f, "lat_ns": {"percentile": {"50.000000": 1000, "99.000000": 2000, "99.900000": 3000}}}
}]}`, other, side, iops, iops*4096)
}

func TestParseFio(t *testing.T) {
	for _, side := range []string{"read", "write"} {
		s, err := parseFio([]byte(fioSays(side, 500)))
		require.NoError(t, err)
		require.Equal(t, sample{IOPS: 500, Bytes: 500 * 4096, P50: 1000, P99: 2000, P999: 3000}, s)
	}
	for _, bad := range []string{"", "fio: failed", "{", `{"jobs": []}`, `{"jobs": [{}]}`} {
		_, err := parseFio([]byte(bad))
		require.Error(t, err, bad)
	}
}

func TestMedian(t *testing.T) {
	require.Zero(t, median(nil))
	require.Equal(t, 2.0, median([]float64{3, 1, 2}))
	require.Equal(t, 2.5, median([]float64{4, 1, 2, 3}))
}

// Ratios are of the same round, so a machine that slows down changes none.
func TestRatiosArePaired(t *testing.T) {
	round := 0.0
	table := &table{
		Name: "t", works: []work{{"read", "4k", 1}, {"write", "4k", 2}},
		contenders: []contender{
			{"base", func(context.Context, work) (sample, error) { round++; return sample{IOPS: 1000 / round}, nil }},
			{"<half>", func(context.Context, work) (sample, error) { return sample{IOPS: 500 / round, Server: round}, nil }},
		},
	}
	require.NoError(t, table.measure(t.Context(), 5, new(quiet)))
	require.Len(t, table.Blocks, 2)
	for _, k := range table.Blocks {
		require.Len(t, k.Rows[0].Samples, 5)
		require.Equal(t, []float64{1, 1, 1}, []float64{k.Rows[0].Ratio, k.Rows[0].Low, k.Rows[0].High})
		require.Equal(t, []float64{0.5, 0.5, 0.5}, []float64{k.Rows[1].Ratio, k.Rows[1].Low, k.Rows[1].High})
	}
	require.Equal(t, 5.0, table.Blocks[0].Rows[1].Median.Server, "rounds 1, 3, 5, 7, 9")

	wellFormed(t, table.plot())
	require.Contains(t, string(table.plot()), "&lt;half&gt;")
}

func wellFormed(t *testing.T, text []byte) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(string(text))); ; {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
	}
}

func TestReadGuest(t *testing.T) {
	var out strings.Builder
	for round := range 3 {
		for i := range guestWorks {
			for k, d := range guestDisks {
				fmt.Fprintf(&out, "@@ %d %s\n%s\n", i, d.address, fioSays("read", float64(100*(k+1)*(round+1))))
			}
		}
	}
	table, err := readGuest(out.String())
	require.NoError(t, err)
	for _, k := range table.Blocks {
		for i, r := range k.Rows {
			require.Equal(t, guestDisks[i].name, r.Name)
			require.Len(t, r.Samples, 3)
			require.InDelta(t, float64(i+1), r.Ratio, 1e-9)
		}
	}
	_, err = readGuest(out.String()[:out.Len()/2])
	require.Error(t, err)
	_, err = readGuest("nothing")
	require.Error(t, err)
}

// A process that is not ours is seen.
func TestOthers(t *testing.T) {
	before, err := startWatch()
	require.NoError(t, err)
	// A child of a child is no child of ours, as others' processes are not.
	out, err := exec.Command("sh", "-c", "sh -c 'ulimit -t 30; while :; do :; done' >/dev/null 2>&1 & echo $!").Output()
	require.NoError(t, err)
	var pid int
	_, err = fmt.Sscan(string(out), &pid)
	require.NoError(t, err)
	defer func() { require.NoError(t, syscall.Kill(pid, syscall.SIGKILL)) }()
	require.Eventually(t, func() bool {
		spun, err := bench.ProcessTime(pid)
		return err == nil && spun >= 300*time.Millisecond
	}, 3*time.Minute, 10*time.Millisecond)
	other, err := before.others()
	require.NoError(t, err)
	all := time.Since(before.at).Seconds() * float64(runtime.NumCPU())
	require.Greater(t, other/100*all, 0.2, "seconds that others have used")
}

// A noisy turn is repeated as long as there is patience, and the quietest counts.
func TestNoisyTurnsAreRepeated(t *testing.T) {
	turns := 0
	c := contender{"c", func(context.Context, work) (sample, error) { turns++; return sample{IOPS: float64(turns)}, nil }}
	q := quiet{most: -1, patience: time.Hour}
	_, err := q.take(t.Context(), c, work{})
	require.NoError(t, err)
	require.Equal(t, tries, turns)
	require.Less(t, q.patience, time.Hour)

	turns, q = 0, quiet{most: -1}
	s, err := q.take(t.Context(), c, work{})
	require.NoError(t, err)
	require.Equal(t, sample{IOPS: 1, Others: s.Others}, s)

	turns, q = 0, quiet{most: 1e6, patience: time.Hour}
	_, err = q.take(t.Context(), c, work{})
	require.NoError(t, err)
	require.Equal(t, 1, turns)

	q = quiet{}
	_, err = q.take(t.Context(), contender{"c", func(context.Context, work) (sample, error) { return sample{}, nil }}, work{})
	require.ErrorContains(t, err, "no request")
}

// A goal is reached or not by what was measured in the same round, and nothing that
// was not measured counts as reached.
func TestGoals(t *testing.T) {
	for _, g := range new(report).goals() {
		require.Equal(t, notMeasured, g.Got)
		require.False(t, g.Reached)
	}
	made := func(ratio, added float64) *report {
		r := &report{Idle: map[string]float64{"trapped": 0.4, "trap-free": 0.6}}
		for _, n := range []struct {
			name  string
			works []work
			rows  []string
		}{
			{"file", fileWorks, []string{"fio", oursName}},
			{"null", nullWorks, []string{"vblk-ep, polling", "vblk-ep, polling server", oursName, twoQueues}},
			{"guest", guestWorks, []string{guestDisks[0].name, guestDisks[1].name, oursName}},
		} {
			t := &table{Name: n.name}
			for _, w := range n.works {
				k := &block{Work: w}
				for i, name := range n.rows {
					row := &row{Name: name}
					for round := range 3 {
						speed := 1e6 / float64(round+1)
						if i == len(n.rows)-1 {
							speed *= ratio
						}
						row.Samples = append(row.Samples, sample{IOPS: speed, P50: 1e4 + added*float64(i)})
					}
					k.Rows = append(k.Rows, row)
				}
				t.Blocks = append(t.Blocks, k)
			}
			t.conclude()
			r.Tables = append(r.Tables, t)
		}
		return r
	}
	reached := func(list []goal) (got []bool) {
		for _, g := range list {
			got = append(got, g.Reached)
		}
		return got
	}
	require.Equal(t, []bool{true, true, true, true, true, false, true, true, true, true, true, true, false}, reached(made(2, 15e3).goals()))
	require.Equal(t, []bool{false, true, true, true, false, false, false, false, false, false, false, true, false}, reached(made(0.93, 15.1e3).goals()))
	require.False(t, made(0.89, 0).goals()[1].Reached)
}

// A turn runs the real program; what is written can be read.
func TestTurnAndReport(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "vblk-ep")
	out, err := exec.Command("go", "build", "-o", program, "github.com/vblk-ep/vblk-ep/cmd/vblk-ep").CombinedOutput()
	require.NoError(t, err, string(out))
	l := &lab{config: config{program: program, runtime: 200 * time.Millisecond, size: 1 << 20}, dir: dir}
	t.Cleanup(func() { require.NoError(t, l.close()) })
	l.run, err = l.tmpfs()
	require.NoError(t, err)
	path, err := l.file(dir, "disk.img")
	require.NoError(t, err)
	small := &table{
		Name: "small", works: []work{{"randwrite", "4k", 4}},
		contenders: []contender{l.ours("one", path), l.ours("two", "null:1G", "--ring", "packed")},
	}
	require.NoError(t, small.measure(t.Context(), 1, new(quiet)))
	for _, r := range small.Blocks[0].Rows {
		require.Positive(t, r.Median.IOPS)
		require.Positive(t, r.Median.P50)
		require.Positive(t, r.Median.Server)
	}
	rep := &report{Machine: machine(t.Context(), l.config), Tables: []*table{small}}
	rep.Idle, err = l.idle(t.Context())
	require.NoError(t, err)
	require.Len(t, rep.Idle, 2)
	require.NoError(t, rep.write(dir))
	for _, name := range []string{"bench.md", "bench.json", "small.svg"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Contains(t, string(b), "two", name)
	}
}
