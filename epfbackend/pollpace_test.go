package epfbackend

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPollPaceFollowsTheWaits(t *testing.T) {
	const us = time.Microsecond
	var p pollPace // auto
	steps := func(c cause, waited time.Duration, want ...time.Duration) {
		t.Helper()
		for i, w := range want {
			p.waited(c, waited)
			require.Equal(t, w, p.budget(c), "wait %d", i)
		}
	}
	require.Zero(t, p.budget(forDriver))
	steps(forDriver, 20*us, 4*us, 8*us, 16*us, 32*us, 64*us, 100*us, 100*us)
	require.Zero(t, p.budget(forDisk), "of its own")
	steps(forDisk, 99*us, 4*us, 8*us, 16*us, 32*us, 64*us, 100*us, 100*us)
	steps(forDriver, 100*us, 50*us, 25*us, 12500, 6250, 3125, 0, 0)
	steps(forSeveral, 0, 0, 0)
	steps(forDisk, time.Hour, 50*us, 25*us, 12500, 6250, 3125, 0, 0)

	for mode, want := range map[Poll]time.Duration{PollOff: 0, PollAlways: -2, Poll(7 * us): 7 * us} {
		p := pollPace{mode: mode}
		for range 10 {
			p.waited(forDriver, us)
		}
		require.Equal(t, want, p.budget(forDriver))
	}
}
