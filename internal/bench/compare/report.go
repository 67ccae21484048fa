package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/vblk-ep/vblk-ep/internal/bench"
)

// report is everything that was measured.
type report struct {
	Machine facts              `json:"machine"`
	Tables  []*table           `json:"tables"`
	Idle    map[string]float64 `json:"idle_server_percent_of_core"`
	Goals   []goal             `json:"goals"`
}

// facts are what figures depend on.
type facts struct {
	Processor string   `json:"processor"`
	Cores     int      `json:"cores"`
	Kernel    string   `json:"kernel"`
	Load      float64  `json:"load"` // before the first measurement: what else ran
	Rounds    int      `json:"rounds"`
	Runtime   string   `json:"runtime"`
	Versions  []string `json:"versions"`
}

// machine collects the facts, as far as they are to be had.
func machine(ctx context.Context, c config) facts {
	f := facts{Rounds: c.rounds, Runtime: c.runtime.String()}
	if fs, err := procfs.NewDefaultFS(); err == nil {
		if cpus, err := fs.CPUInfo(); err == nil && len(cpus) > 0 {
			f.Processor, f.Cores = cpus[0].ModelName, len(cpus)
		}
		if load, err := fs.LoadAvg(); err == nil {
			f.Load = load.Load1
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		f.Kernel = strings.TrimSpace(string(b))
	}
	for _, command := range [][]string{{c.program, "version"}, {"fio", "--version"}, {"nbdkit", "--version"}} {
		if out, err := output(ctx, command[0], command[1:]...); err == nil {
			f.Versions = append(f.Versions, strings.TrimSpace(string(out)))
		}
	}
	return f
}

// write writes bench.json, bench.md and a plot a table.
func (r *report) write(dir string) error {
	r.Goals = r.goals()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	errs := []error{
		os.WriteFile(filepath.Join(dir, "bench.json"), append(text, '\n'), 0o644),
		os.WriteFile(filepath.Join(dir, "bench.md"), r.markdown(), 0o644),
	}
	for _, t := range r.Tables {
		errs = append(errs, os.WriteFile(filepath.Join(dir, t.Name+".svg"), t.plot(), 0o644))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	fmt.Printf("%s\nwritten to %s: bench.md, bench.json and plots\n", r.markdown(), dir)
	return nil
}

func (r *report) markdown() []byte {
	var b bytes.Buffer
	m := r.Machine
	fmt.Fprintf(&b, "# Measured\n\n%s, %d cores, Linux %s; load before the start %.1f.\n", m.Processor, m.Cores, m.Kernel, m.Load)
	fmt.Fprintf(&b, "%s. Medians of %d rounds of %s; ratios are medians of the rounds' ratios, with their extremes.\n",
		strings.Join(m.Versions, ", "), m.Rounds, m.Runtime)
	printGoals(&b, r.Goals)
	for _, t := range r.Tables {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", t.Name, t.About)
		for _, k := range t.Blocks {
			k.markdown(&b)
		}
	}
	if len(r.Idle) == 0 {
		return b.Bytes()
	}
	fmt.Fprintf(&b, "\n## idle\n\nA live driver that asks for nothing.\n\n| registers | server, %% of a core |\n|---|--:|\n")
	for _, name := range slices.Sorted(maps.Keys(r.Idle)) {
		fmt.Fprintf(&b, "| %s | %.2f |\n", name, r.Idle[name])
	}
	return b.Bytes()
}

func (k *block) markdown(b *bytes.Buffer) {
	fmt.Fprintf(b, "\n### %v\n\n", k.Work)
	fmt.Fprintln(b, "| | IOPS | best | bytes | ratio | p50 µs | p99 µs | p99.9 µs | server µs a request | others % |")
	fmt.Fprintln(b, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	for _, r := range k.Rows {
		m, server := r.Median, ""
		if m.Server > 0 {
			server = bench.Micros(m.Server)
		}
		fmt.Fprintf(b, "| %s | %s | %s | %s | %.2f (%.2f–%.2f) | %s | %s | %s | %s | %.0f |\n", r.Name, bench.Rate(m.IOPS), bench.Rate(r.Best), bench.Bandwidth(m.Bytes),
			r.Ratio, r.Low, r.High, bench.Micros(m.P50), bench.Micros(m.P99), bench.Micros(m.P999), server, m.Others)
	}
}
