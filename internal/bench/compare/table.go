package main

import (
	"context"
	"fmt"
	"os"
	"slices"
)

// work is one kind of load. Names are fio's.
type work struct {
	RW    string `json:"rw"`
	Block string `json:"bs"`
	Depth int    `json:"iodepth"`
}

func (w work) String() string { return fmt.Sprintf("%s %s depth %d", w.RW, w.Block, w.Depth) }

// sample is what one turn measured.
type sample struct {
	IOPS  float64 `json:"iops"`
	Bytes float64 `json:"bytes_per_second"`
	P50   float64 `json:"p50_ns"`
	P99   float64 `json:"p99_ns"`
	P999  float64 `json:"p99.9_ns"`
	// Server is the server's processor time in nanoseconds a request; 0 where there
	// is no server, or it is not measured.
	Server float64 `json:"server_cpu_ns_per_request"`
	// Others is how much of the machine others used meanwhile, in percent.
	Others float64 `json:"others_percent"`
}

// contender is one way to do the same work.
type contender struct {
	name string
	turn func(ctx context.Context, w work) (sample, error)
}

// row is what a contender's turns at a work came to.
type row struct {
	Name    string   `json:"contender"`
	Samples []sample `json:"samples"`
	Median  sample   `json:"median"`
	Best    float64  `json:"best_iops"` // of all rounds: what other load on the machine hides
	// Ratio is the median over the rounds of IOPS by the first contender's, and
	// Low and High its extremes.
	Ratio float64 `json:"ratio"`
	Low   float64 `json:"ratio_low"`
	High  float64 `json:"ratio_high"`
}

// block is all contenders at one work.
type block struct {
	Work work   `json:"work"`
	Rows []*row `json:"rows"`
}

// table is all works on one disk.
type table struct {
	Name   string   `json:"name"`
	About  string   `json:"about"`
	Blocks []*block `json:"works"`

	works      []work
	contenders []contender
}

// measure lets the contenders take turns.
func (t *table) measure(ctx context.Context, rounds int, q *quiet) error {
	for _, w := range t.works {
		b := &block{Work: w}
		for _, c := range t.contenders {
			b.Rows = append(b.Rows, &row{Name: c.name})
		}
		t.Blocks = append(t.Blocks, b)
	}
	for n := range rounds {
		for i, w := range t.works {
			fmt.Fprintf(os.Stderr, "%s, %v, round %d of %d\n", t.Name, w, n+1, rounds)
			for k, c := range t.contenders {
				s, err := q.take(ctx, c, w)
				if err != nil {
					return fmt.Errorf("%s, %v, %s: %w", t.Name, w, c.name, err)
				}
				r := t.Blocks[i].Rows[k]
				r.Samples = append(r.Samples, s)
			}
		}
	}
	t.conclude()
	return nil
}

// conclude fills in medians and ratios.
func (t *table) conclude() {
	for _, b := range t.Blocks {
		base := b.Rows[0].Samples
		for _, r := range b.Rows {
			get := func(f func(s sample) float64) float64 {
				var list []float64
				for _, s := range r.Samples {
					list = append(list, f(s))
				}
				return median(list)
			}
			r.Median = sample{
				IOPS: get(func(s sample) float64 { return s.IOPS }), Bytes: get(func(s sample) float64 { return s.Bytes }),
				P50: get(func(s sample) float64 { return s.P50 }), P99: get(func(s sample) float64 { return s.P99 }),
				P999: get(func(s sample) float64 { return s.P999 }), Server: get(func(s sample) float64 { return s.Server }),
				Others: get(func(s sample) float64 { return s.Others }),
			}
			for _, s := range r.Samples {
				r.Best = max(r.Best, s.IOPS)
			}
			var ratios []float64
			for i, s := range r.Samples {
				ratios = append(ratios, s.IOPS/base[i].IOPS)
			}
			r.Ratio, r.Low, r.High = median(ratios), slices.Min(ratios), slices.Max(ratios)
		}
	}
}

func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	n := len(s)
	if n == 0 {
		return 0
	}
	return (s[(n-1)/2] + s[n/2]) / 2
}
