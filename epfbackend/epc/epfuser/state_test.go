package epfuser

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
)

func TestStateIsThatOfOneFunction(t *testing.T) {
	s := make(state, 4096)
	require.False(t, s.holds(nil))
	s.mark()
	require.False(t, s.holds(nil))

	d := &epc.Description{MSIX: epc.MSIX{Vectors: 2}, Capabilities: []epc.Capability{{Data: []byte{9, 0, 3}}}}
	s.made(d)
	require.True(t, s.holds(nil))
	require.True(t, s.holds(d))
	other := *d
	other.MSIX.Vectors = 3
	require.False(t, s.holds(&other))
	other = *d
	other.Capabilities = []epc.Capability{{Data: []byte{9, 0, 4}}}
	require.False(t, s.holds(&other))

	s.saw(1 << 40)
	require.EqualValues(t, 1<<40, s.seen())
	require.True(t, s.holds(d))

	s.mark()
	require.Zero(t, s.seen())
	require.False(t, s.holds(nil), "what is made anew was not programmed yet")
}
