package vring

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Positions against a walk along the ring, one descriptor at a time.
func TestLaps(t *testing.T) {
	for _, size := range []int{1, 2, 3, 7, 64} {
		l := laps{size}
		slot, wrap := 0, true
		for p := range 2 * size {
			require.Equal(t, slot, l.slot(p))
			encoded := l.encode(p)
			require.Equal(t, slot, int(encoded&0x7fff))
			require.Equal(t, wrap, encoded&0x8000 != 0)
			require.Equal(t, p, l.decode(encoded))
			requireFlags(t, l, p, wrap)
			at := p
			for n := range 2 * size {
				require.Equal(t, at, l.after(p, n))
				require.Equal(t, n, l.between(p, at))
				at = l.after(at, 1)
			}
			require.Equal(t, p, at, "two laps")
			if slot++; slot == size {
				slot, wrap = 0, !wrap
			}
		}
		require.True(t, wrap, "after two laps all is as it was")
	}
}

func requireFlags(t *testing.T, l laps, p int, wrap bool) {
	for bits := range 4 {
		a, u := bits&1 != 0, bits&2 != 0
		flags := uint16(flagNext | flagWrite)
		if a {
			flags |= 0x80
		}
		if u {
			flags |= 0x8000
		}
		require.Equal(t, a == wrap && u != wrap, l.available(flags, p))
		require.Equal(t, a == wrap && u == wrap, flags&0x8080 == l.used(p))
	}
}

// The largest ring has a slot for each value of 15 bits.
func TestLapsOfTheLargestRing(t *testing.T) {
	l := laps{MaxSize}
	for v := range 1 << 16 {
		require.Equal(t, uint16(v), l.encode(l.decode(uint16(v))))
	}
}
