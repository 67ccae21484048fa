package doorbell_test

import (
	"encoding/binary"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/doorbell"
)

func newTrapped(t *testing.T) *doorbell.Trapped {
	d, err := doorbell.NewTrapped()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

// wait returns whether the doorbell rings within a time.
func wait(t *testing.T, d doorbell.Source, timeout time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(d.FD()), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, int(timeout/time.Millisecond))
		if err != unix.EINTR {
			require.NoError(t, err)
			return n == 1
		}
	}
}

// drain is what the waiter does; it returns how many rings were merged.
func drain(t *testing.T, d doorbell.Source) uint64 {
	var b [8]byte
	_, err := unix.Read(d.FD(), b[:])
	require.NoError(t, err)
	return binary.NativeEndian.Uint64(b[:])
}

func TestRingsAreMergedAndNotLost(t *testing.T) {
	d := newTrapped(t)
	require.False(t, wait(t, d, 0))
	for range 3 {
		d.Ring()
	}
	require.True(t, wait(t, d, 0))
	require.EqualValues(t, 3, drain(t, d))
	require.False(t, wait(t, d, 0))
}

func TestRingWakesASleeper(t *testing.T) {
	d := newTrapped(t)
	const rings = 1000
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range rings / 2 {
				d.Ring()
			}
		})
	}
	for got := uint64(0); got < rings; got += drain(t, d) {
		require.True(t, wait(t, d, 10*time.Second))
	}
	wg.Wait()
}

// A host can ring as often as it likes.
func TestFullCounter(t *testing.T) {
	d := newTrapped(t)
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], 1<<64-2)
	_, err := unix.Write(d.FD(), b[:])
	require.NoError(t, err)
	d.Ring() // neither blocks nor fails
	require.True(t, wait(t, d, 0))
}

func TestRingDoesNotAllocate(t *testing.T) {
	d := newTrapped(t)
	require.Zero(t, testing.AllocsPerRun(100, d.Ring))
}
