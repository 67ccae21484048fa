package epfuser

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
)

func TestStateIsKeptOnceAndForOneFunction(t *testing.T) {
	s := make(state, 4096)
	require.False(t, s.kept(nil))
	s.mark()
	require.False(t, s.kept(nil))

	d := &epc.Description{MSIX: epc.MSIX{Vectors: 2}, Capabilities: []epc.Capability{{Data: []byte{9, 0, 3}}}}
	require.ErrorIs(t, s.keep(d, make([]byte, len(s))), errStateRoom)
	require.NoError(t, s.keep(d, []byte("queues")))
	require.True(t, s.kept(nil))
	require.True(t, s.kept(d))
	other := *d
	other.MSIX.Vectors = 3
	require.False(t, s.kept(&other))
	other = *d
	other.Capabilities = []epc.Capability{{Data: []byte{9, 0, 4}}}
	require.False(t, s.kept(&other))

	require.Equal(t, []byte("queues"), s.take())
	require.False(t, s.kept(nil), "a server that is killed later leaves nothing to go on from")
}
