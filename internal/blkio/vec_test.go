package blkio

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// vectors returns memory, and a vector that lists all of it in pieces, some empty.
func vectors(rng *rand.Rand, n int) (memory []byte, vec []unix.Iovec) {
	memory = make([]byte, n)
	for at := 0; at < n; {
		size := min(rng.IntN(20), n-at)
		vec = append(vec, unix.Iovec{Base: &memory[at], Len: uint64(size)})
		at += size
	}
	return memory, vec
}

func TestPartsOfVectors(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var buf []unix.Iovec
	for range 2000 {
		memory, vec := vectors(rng, 1+rng.IntN(100))
		for i := range memory {
			memory[i] = byte(rng.Uint32())
		}
		before := append([]unix.Iovec(nil), vec...)
		off := rng.IntN(len(memory) + 10)
		want := memory[min(off, len(memory)):]
		n := rng.IntN(len(memory) + 10)
		want = want[:min(n, len(want))]

		p := make([]byte, n)
		require.Equal(t, len(want), Gather(p, vec, int64(off)))
		require.True(t, bytes.Equal(want, p[:len(want)]))
		require.Equal(t, make([]byte, n-len(want)), p[len(want):])

		buf = Cut(vec, buf, int64(off), int64(n))
		total, _, _ := Shape(buf)
		require.EqualValues(t, len(want), total)
		clear(p)
		require.Equal(t, len(want), Gather(p, buf, 0))
		require.True(t, bytes.Equal(want, p[:len(want)]))

		fresh := bytes.Repeat([]byte{0xee}, n)
		expected := bytes.Clone(memory)
		copy(expected[min(off, len(memory)):], fresh[:len(want)])
		require.Equal(t, len(want), Scatter(vec, int64(off), fresh))
		require.True(t, bytes.Equal(expected, memory))
		require.Equal(t, before, vec)
	}
}

func TestPartsOfVectorsAllocateNothing(t *testing.T) {
	memory, vec := vectors(rand.New(rand.NewPCG(1, 2)), 1000)
	buf := make([]unix.Iovec, 0, len(vec))
	p := make([]byte, 300)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		buf = Cut(vec, buf, 77, 300)
		Gather(p, vec, 77)
		Scatter(vec, 78, p)
	}))
	require.NotEmpty(t, memory)
}
