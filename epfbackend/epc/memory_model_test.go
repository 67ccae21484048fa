package epc

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
)

// A view sees each change of the map, whatever it remembers.
func TestViewFollowsTheMap(t *testing.T) {
	m := NewMemory(nil)
	v := m.View()
	b := make([]byte, 1)
	for i := range 3 {
		r := region(0x1000, 0x1000)
		r.Mem[0] = byte(i)
		require.NoError(t, m.Add(r))
		require.NoError(t, v.ReadAt(b, 0x1000))
		require.Equal(t, byte(i), b[0])
		m.Remove(0, 0)
		require.ErrorIs(t, v.ReadAt(b, 0x1000), vring.ErrUnmapped)
	}
}

// The map agrees with an array of pages.
func TestMemoryAgainstAModel(t *testing.T) {
	const pages, page = 32, 0x1000
	rnd := rand.New(rand.NewPCG(1, 2))
	m := NewMemory(nil)
	v := m.View()
	var owner [pages + 1]int // 0: nobody
	id := 0
	b := make([]byte, 1)
	for range 5000 {
		from, n := rnd.IntN(pages), 1+rnd.IntN(4)
		n = min(n, pages-from)
		if rnd.IntN(2) == 0 {
			id++
			r := region(uint64(from*page), uint64(n*page))
			for i := range r.Mem {
				r.Mem[i] = byte(id)
			}
			free := true
			for _, o := range owner[from : from+n] {
				free = free && o == 0
			}
			require.Equal(t, free, m.Add(r) == nil)
			for i := from; free && i < from+n; i++ {
				owner[i] = id
			}
		} else {
			m.Remove(uint64(from*page), uint64(n*page))
			for i := from; i < from+n; {
				end := i + 1
				for end < pages && owner[end] == owner[i] {
					end++
				}
				if whole := i == 0 || owner[i-1] != owner[i]; whole && end <= from+n {
					clear(owner[i:end])
				}
				i = end
			}
		}
		at := rnd.IntN(pages)
		err := v.ReadAt(b, uint64(at*page+rnd.IntN(page)))
		require.Equal(t, owner[at] == 0, errors.Is(err, vring.ErrUnmapped))
		if err == nil {
			require.Equal(t, byte(owner[at]), b[0])
		}
	}
}
