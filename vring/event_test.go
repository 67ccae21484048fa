package vring

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

// needEvent against the sentence it stands for: among the entries that were
// added, was to now-1, is the one at event.
func TestNeedEvent(t *testing.T) {
	for _, was := range []uint16{0, 1, 0x7fff, 0x8000, 0xfff0, 0xffff} {
		for added := range 40 {
			for around := -50; around < 100; around++ {
				event := was + uint16(around)
				want := around >= 0 && around < added
				require.Equal(t, want, needEvent(event, was+uint16(added), was),
					"event %#x, from %#x, %d added", event, was, added)
			}
		}
	}
	require.True(t, needEvent(0x1000, 0x8000, 0), "the largest batch")
	require.False(t, needEvent(0x8000, 0x8000, 0), "the largest batch")
}

// After 2^32 rounds an old copy must not look like a fresh one.
func TestRoundsWrap(t *testing.T) {
	tab := table{read: []uint32{0, 1, 2, math.MaxUint32}, round: math.MaxUint32}
	tab.forget()
	require.NotContains(t, tab.read, tab.round)
	tab.forget()
	require.NotContains(t, tab.read, tab.round)
}
