package bench

import (
	"fmt"
	"io"
	"strconv"
	"time"
)

// Result is what a run measured. Its JSON form is an interface: names stay.
type Result struct {
	Runtime  time.Duration `json:"runtime_ns"` // that was measured
	Requests uint64        `json:"requests"`
	Reads    uint64        `json:"reads"`
	Writes   uint64        `json:"writes"`
	IOPS     float64       `json:"iops"`
	Bytes    float64       `json:"bytes_per_second"`
	Latency  Latencies     `json:"latency_ns"`

	// Processor time in nanoseconds a request; null where the server's process
	// cannot be told.
	ServerCPU *float64 `json:"server_cpu_ns_per_request"`
	ClientCPU float64  `json:"client_cpu_ns_per_request"`

	Kicks      int64 `json:"kicks"`      // notifications sent, the ramp's included
	Interrupts int64 `json:"interrupts"` // waited for, the ramp's included

	// Checked is how many blocks were read and found as they were written; null in
	// runs that do not verify.
	Checked *uint64 `json:"verified_blocks"`

	total uint64 // of requests, the ramp's included
}

// Latencies are in nanoseconds, from before a request's batch is submitted until
// after the batch it is reaped with.
type Latencies struct {
	Min   int64   `json:"min"`
	Mean  float64 `json:"mean"`
	P50   int64   `json:"p50"`
	P90   int64   `json:"p90"`
	P95   int64   `json:"p95"`
	P99   int64   `json:"p99"`
	P999  int64   `json:"p99.9"`
	P9999 int64   `json:"p99.99"`
	Max   int64   `json:"max"`
}

func latencies(h *Histogram) Latencies {
	return Latencies{
		Min: h.Min(), Mean: h.Mean(), Max: h.Max(),
		P50: h.Percentile(50), P90: h.Percentile(90), P95: h.Percentile(95),
		P99: h.Percentile(99), P999: h.Percentile(99.9), P9999: h.Percentile(99.99),
	}
}

func (r *run) result(from, to snapshot) *Result {
	res := &Result{
		Runtime: to.at - from.at, Reads: to.reads - from.reads, Writes: to.writes - from.writes,
	}
	res.Requests = res.Reads + res.Writes
	res.IOPS = float64(res.Requests) / res.Runtime.Seconds()
	res.Bytes = res.IOPS * float64(r.job.Block)
	each := func(t time.Duration) float64 { return float64(t) / float64(max(res.Requests, 1)) }
	res.ClientCPU = each(to.usage.client - from.usage.client)
	if from.usage.serverKnown && to.usage.serverKnown {
		server := each(to.usage.server - from.usage.server)
		res.ServerCPU = &server
	}
	var all Histogram
	var checked uint64
	for _, l := range r.lanes {
		all.Merge(&l.latency)
		checked += l.checked.Load()
		res.Kicks += l.q.Kicks()
		res.Interrupts += l.q.Interrupts()
	}
	res.total = to.reads + to.writes
	res.Latency = latencies(&all)
	if r.job.Verify {
		res.Checked = &checked
	}
	return res
}

// Print writes the result as text.
func (r *Result) Print(w io.Writer) {
	us, l := Micros, r.Latency
	fmt.Fprintf(w, "  %d requests in %.2f s: %s IOPS, %s\n", r.Requests, r.Runtime.Seconds(), Rate(r.IOPS), Bandwidth(r.Bytes))
	fmt.Fprintf(w, "  latency in µs: min %s, mean %s, max %s\n", us(float64(l.Min)), us(l.Mean), us(float64(l.Max)))
	fmt.Fprintf(w, "    p50 %s, p90 %s, p95 %s, p99 %s, p99.9 %s, p99.99 %s\n", us(float64(l.P50)), us(float64(l.P90)),
		us(float64(l.P95)), us(float64(l.P99)), us(float64(l.P999)), us(float64(l.P9999)))
	cpu := func(ns float64) string { return fmt.Sprintf("%s µs (%.0f %% of a core)", us(ns), ns*r.IOPS/1e7) }
	server := "not known"
	if r.ServerCPU != nil {
		server = cpu(*r.ServerCPU)
	}
	fmt.Fprintf(w, "  processor time a request: server %s, client %s\n", server, cpu(r.ClientCPU))
	n := float64(max(r.total, 1))
	fmt.Fprintf(w, "  %.3f kicks and %.3f interrupts a request\n", float64(r.Kicks)/n, float64(r.Interrupts)/n)
	if r.Checked != nil {
		fmt.Fprintf(w, "  %d blocks verified\n", *r.Checked)
	}
}

// Micros writes a time in nanoseconds as a number of microseconds.
func Micros(ns float64) string {
	digits := 2
	switch {
	case ns >= 1e5:
		digits = 0
	case ns >= 1e4:
		digits = 1
	}
	return strconv.FormatFloat(ns/1e3, 'f', digits, 64)
}

// Rate writes a number of requests a second.
func Rate(v float64) string { return scaled(v, 1000, []string{"", "k", "M", "G"}) }

// Bandwidth writes a number of bytes a second.
func Bandwidth(v float64) string {
	return scaled(v, 1024, []string{" B/s", " KiB/s", " MiB/s", " GiB/s", " TiB/s"})
}

func scaled(v, step float64, units []string) string {
	for v >= step && len(units) > 1 {
		v /= step
		units = units[1:]
	}
	return fmt.Sprintf("%.4g%s", v, units[0])
}
