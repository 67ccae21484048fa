package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// ours is vblk-ep, loaded by its own driver, with more flags of bench.
func (l *lab) ours(name, disk string, flags ...string) contender {
	return contender{name, func(ctx context.Context, w work) (sample, error) {
		args := append([]string{
			"bench", "--json", "--disk", disk, "--rw", w.RW, "--bs", w.Block, "--iodepth", strconv.Itoa(w.Depth),
			"--runtime", l.runtime.String(), "--ramp-time", ramp.String(),
		}, flags...)
		out, err := output(ctx, l.program, args...)
		if err != nil {
			return sample{}, err
		}
		var r struct {
			IOPS    float64            `json:"iops"`
			Bytes   float64            `json:"bytes_per_second"`
			Latency map[string]float64 `json:"latency_ns"`
			Server  float64            `json:"server_cpu_ns_per_request"`
		}
		err = json.Unmarshal(out, &r)
		return sample{
			IOPS: r.IOPS, Bytes: r.Bytes, Server: r.Server,
			P50: r.Latency["p50"], P99: r.Latency["p99"], P999: r.Latency["p99.9"],
		}, err
	}}
}

// fio runs fio's own engines: on the file itself, or through NBD.
func (l *lab) fio(name string, engine ...string) contender {
	return contender{name, func(ctx context.Context, w work) (sample, error) {
		out, err := output(ctx, "fio", fioArgs(w, l.runtime, engine...)...)
		if err != nil {
			return sample{}, err
		}
		return parseFio(out)
	}}
}

// direct is what makes fio use a file as we do.
func direct(path string) []string {
	return []string{"--ioengine=io_uring", "--direct=1", "--filename=" + path}
}

func nbd(socket string) []string {
	return []string{"--ioengine=nbd", "--uri=nbd+unix:///?socket=" + socket}
}

func fioArgs(w work, runtime time.Duration, more ...string) []string {
	return append([]string{
		"--name=job", "--rw=" + w.RW, "--bs=" + w.Block, "--iodepth=" + strconv.Itoa(w.Depth),
		"--time_based", fmt.Sprintf("--runtime=%dms", runtime.Milliseconds()), fmt.Sprintf("--ramp_time=%dms", ramp.Milliseconds()),
		"--norandommap", "--randrepeat=0", "--invalidate=0",
		"--clat_percentiles=0", "--lat_percentiles=1", "--percentile_list=50:99:99.9", "--output-format=json",
	}, more...)
}

// parseFio reads what fio prints as JSON.
func parseFio(out []byte) (sample, error) {
	type side struct {
		IOPS    float64 `json:"iops"`
		Bytes   float64 `json:"bw_bytes"`
		Latency struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"lat_ns"`
	}
	var r struct {
		Jobs []struct {
			Read  side `json:"read"`
			Write side `json:"write"`
		} `json:"jobs"`
	}
	begin := bytes.IndexByte(out, '{') // notes come before
	if begin < 0 {
		return sample{}, fmt.Errorf("fio printed no JSON: %s", out)
	}
	if err := json.Unmarshal(out[begin:], &r); err != nil {
		return sample{}, fmt.Errorf("what fio printed: %w", err)
	}
	if len(r.Jobs) != 1 {
		return sample{}, fmt.Errorf("fio ran %d jobs", len(r.Jobs))
	}
	s := r.Jobs[0].Read
	if w := r.Jobs[0].Write; w.IOPS > 0 {
		s = w
	}
	p := s.Latency.Percentile
	if s.IOPS == 0 || p["50.000000"] == 0 {
		return sample{}, errors.New("fio measured nothing")
	}
	return sample{IOPS: s.IOPS, Bytes: s.Bytes, P50: p["50.000000"], P99: p["99.000000"], P999: p["99.900000"]}, nil
}

// output runs a program and returns what it printed; the error carries what it
// complained about.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(complaints.String()+string(out)))
	}
	return out, nil
}
