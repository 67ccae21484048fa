package bench

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBucketsFollowOneAnother(t *testing.T) {
	for b := range buckets - 1 {
		require.Equal(t, b, bucketOf(uint64(upper(b))), "the largest value of bucket %d", b)
		require.Equal(t, b+1, bucketOf(uint64(upper(b))+1), "the smallest value after bucket %d", b)
	}
	require.Equal(t, buckets-1, bucketOf(1<<63))
}

// A percentile is at most 1/64 above the value that sorting finds.
func TestPercentiles(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for name, draw := range map[string]func() int64{
		"small":  func() int64 { return r.Int64N(100) },
		"spread": func() int64 { return r.Int64N(1 << r.IntN(40)) },
		"one":    func() int64 { return 12345 },
	} {
		for _, n := range []int{1, 2, 1000, 99999} {
			var h, half Histogram
			values := make([]int64, n)
			for i := range values {
				values[i] = draw()
				if i%2 == 0 {
					h.Add(values[i])
				} else {
					half.Add(values[i])
				}
			}
			h.Merge(&half)
			slices.Sort(values)
			require.EqualValues(t, n, h.Count())
			require.Equal(t, values[0], h.Min())
			require.Equal(t, values[n-1], h.Max())
			var sum float64
			for _, v := range values {
				sum += float64(v)
			}
			require.InEpsilon(t, sum/float64(n)+1, h.Mean()+1, 1e-9)
			for _, p := range []float64{0, 50, 90, 99, 99.9, 99.99, 100} {
				exact := values[max(int(p/100*float64(n)+1-1e-6)-1, 0)]
				got := h.Percentile(p)
				require.GreaterOrEqual(t, got, exact, "%s: p%v of %d", name, p, n)
				require.LessOrEqual(t, got, exact+exact/sub, "%s: p%v of %d", name, p, n)
			}
		}
	}
	var empty Histogram
	require.Zero(t, empty.Percentile(50))
	require.Zero(t, empty.Mean())
}
