package bench

import (
	"math"
	"math/bits"
)

const (
	// subBits sets the precision: a bucket spans at most 1/64 of its values.
	subBits = 6
	sub     = 1 << subBits
	// octaves beyond the first 2*sub values, which have a bucket each: up to 2^42 ns,
	// more than an hour. What takes longer counts as that.
	octaves = 42 - subBits - 1
	buckets = sub * (octaves + 2)
)

// Histogram counts latencies in nanoseconds in a fixed number of buckets, whose
// width grows with their value. The zero value is empty.
type Histogram struct {
	counts   [buckets]uint64
	n        uint64
	sum      float64
	min, max int64
}

// Add counts one latency.
func (h *Histogram) Add(ns int64) {
	ns = max(ns, 0)
	if h.n == 0 || ns < h.min {
		h.min = ns
	}
	h.max = max(h.max, ns)
	h.n++
	h.sum += float64(ns)
	h.counts[bucketOf(uint64(ns))]++
}

func bucketOf(v uint64) int {
	if v < sub {
		return int(v)
	}
	shift := bits.Len64(v) - 1 - subBits
	return min(shift*sub+int(v>>shift), buckets-1)
}

// upper returns the largest value of a bucket.
func upper(bucket int) int64 {
	if bucket < 2*sub {
		return int64(bucket)
	}
	shift := bucket/sub - 1
	return int64(bucket-shift*sub+1)<<shift - 1
}

// Merge adds what o has counted.
func (h *Histogram) Merge(o *Histogram) {
	if o.n == 0 {
		return
	}
	if h.n == 0 || o.min < h.min {
		h.min = o.min
	}
	h.max = max(h.max, o.max)
	h.n += o.n
	h.sum += o.sum
	for i, c := range o.counts {
		h.counts[i] += c
	}
}

// Count returns how many latencies were counted.
func (h *Histogram) Count() uint64 { return h.n }

// Percentile returns a latency that p percent of all are not above, at most 1/64
// more than the smallest such; 0 when nothing was counted.
func (h *Histogram) Percentile(p float64) int64 {
	const noise = 1e-6 // 99.9 % of 1000 are 999, whatever a float64 makes of it
	rank := uint64(max(math.Ceil(p/100*float64(h.n)-noise), 1))
	var seen uint64
	for i, c := range h.counts {
		if seen += c; seen >= rank {
			return min(upper(i), h.max)
		}
	}
	return h.max
}

// Min, Max and Mean are exact.
func (h *Histogram) Min() int64 { return h.min }

// Max returns the largest latency.
func (h *Histogram) Max() int64 { return h.max }

// Mean returns the mean latency.
func (h *Histogram) Mean() float64 {
	if h.n == 0 {
		return 0
	}
	return h.sum / float64(h.n)
}
