package bench

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFiguresReadWell(t *testing.T) {
	for ns, want := range map[float64]string{0: "0.00", 123: "0.12", 9994: "9.99", 12340: "12.3", 2.67e8: "267000"} {
		require.Equal(t, want, Micros(ns))
	}
	for v, want := range map[float64]string{0: "0", 999: "999", 1000: "1k", 81234: "81.23k", 2.5e6: "2.5M"} {
		require.Equal(t, want, Rate(v))
	}
	require.Equal(t, "1.5 GiB/s", Bandwidth(3<<29))
	require.Equal(t, "512 B/s", Bandwidth(512))
}
