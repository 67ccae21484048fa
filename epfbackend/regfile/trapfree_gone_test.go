package regfile

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// The host's end goes, and is told of only when the next host's driver has begun, however
// far that has come. What ran before ends, and the driver that came is served, not lost.
func TestHostGoneIsToldLate(t *testing.T) {
	for _, before := range stock {
		for _, next := range stock[:5] {
			for _, n := range []uint64{1, 2} { // on the same rings, or others
				for _, pace := range []int{1, 2, 5, 1000} { // steps of the driver between two samples
					for told := 0; told >= 0; {
						told = toldLate(t, before.run, next.run, n, pace, told)
					}
				}
			}
		}
	}
}

// toldLate has the end told behind so many steps of the next driver, and returns the next
// number, -1 if there is none.
func toldLate(t *testing.T, before, next func(s *script, q Queue), n uint64, pace, told int) int {
	r := newRig(1)
	settled := true
	r.cfg.Settled = func() bool { return settled }
	r.play(t, func(s *script) { before(s, ring(1)) })
	require.NoError(t, r.Sample())
	old := r.Epoch()

	s := newScript(1)
	s.size = r.common.read(virtiopci.QueueSize, 2)
	next(s, ring(n))
	settled = false
	tell := func() {
		require.Contains(t, []uint64{0, old}, r.Epoch(), "nothing is started that may be of before")
		require.NoError(t, r.HostGone(t.Context()))
		settled = true
	}
	check := func() {
		q, ok := r.running[0]
		require.True(t, !ok || !settled || q == s.now.queues[0] && r.Epoch() > old, "nobody is served but who came")
	}
	if told == 0 {
		tell()
		require.NoError(t, r.Sample())
		require.Empty(t, r.running)
	}
	require.NoError(t, r.sampled(t, s, func(step, _ int, _ uint32) bool {
		check()
		if step+1 == told {
			tell()
			check()
		}
		return step%pace == 0
	}))
	if !settled {
		tell()
		told = -2
	}
	check()
	require.NoError(t, r.Sample())
	require.Equal(t, map[int]Queue{0: s.now.queues[0]}, r.running, "told behind %d steps, a sample each %d", told, pace)
	return told + 1
}
