package bench

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPatternTellsWhatIsWrong(t *testing.T) {
	const seed, at, n = 7, 1 << 20, 4096
	fresh := func() []byte {
		b := make([]byte, n)
		stamp(b, seed, at, 3)
		return b
	}
	require.NoError(t, inspect(fresh(), seed, at, 3))
	for name, c := range map[string]struct {
		spoil func(b []byte)
		want  string
	}{
		"nothing was read": {func(b []byte) { clear(b) }, "at 1048576: a write of this run is not there"},
		"another run":      {func(b []byte) { stamp(b, seed+1, at, 3) }, "at 1048576: a write of this run"},
		"misplaced":        {func(b []byte) { stamp(b, seed, at+n, 3) }, "at 1048576: it was written to 1052672"},
		"stale":            {func(b []byte) { stamp(b, seed, at, 2) }, "at 1048576: write 2 of the block, and 3 were completed"},
		"lost sector":      {func(b []byte) { clear(b[1024:1536]) }, "at 1049600: a write of this run"},
		"torn sector":      {func(b []byte) { stamp(b, seed, at, 2); stamp(b[:512], seed, at, 3); copy(b[512:536], fresh()[512:]) }, "at 1049088: it differs from byte 24 on"},
		"one bit":          {func(b []byte) { b[n-1] ^= 1 }, "at 1052160: it differs from byte 504 on"},
	} {
		b := fresh()
		c.spoil(b)
		err := inspect(b, seed, at, 3)
		require.ErrorIs(t, err, ErrVerify, name)
		require.ErrorContains(t, err, c.want, name)
	}
}

// Each bit of a sector is looked at.
func TestPatternEachBitCounts(t *testing.T) {
	b := make([]byte, 512)
	stamp(b, 1, 512, 1)
	for i := range len(b) * 8 {
		b[i/8] ^= 1 << (i % 8)
		require.ErrorIs(t, inspect(b, 1, 512, 1), ErrVerify, "bit %d", i)
		b[i/8] ^= 1 << (i % 8)
	}
	require.NoError(t, inspect(b, 1, 512, 1))
}
