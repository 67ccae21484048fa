package doorbell

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/shm"
)

func newPolled(t *testing.T) (*Polled, shm.Window, []Source) {
	fd, m, err := shm.NewMemory("notify", 4096)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close(); unix.Close(fd) })
	var bells []Source
	for range 2 { // of queues that share the word
		bell, err := NewTrapped()
		require.NoError(t, err)
		t.Cleanup(func() { bell.Close() })
		bells = append(bells, bell)
	}
	w := shm.Of(m.Bytes()[8:12])
	return NewPolled(w, bells...), w, bells
}

func rung(t *testing.T, s Source) bool {
	var b [8]byte
	_, err := unix.Read(s.FD(), b[:])
	if err != nil {
		require.ErrorIs(t, err, unix.EAGAIN)
	}
	return err == nil
}

func TestPolledNoticesEachWriteOfTheSameValue(t *testing.T) {
	p, w, bells := newPolled(t)
	require.False(t, p.Poll())
	for range 3 {
		w.Store16(0, 0)
		require.True(t, p.Poll())
		for _, b := range bells {
			require.True(t, rung(t, b))
		}
		require.False(t, p.Poll())
		for _, b := range bells {
			require.False(t, rung(t, b))
		}
	}
	w.Store32(0, 0x00050001) // a wide write, as of notification data
	require.True(t, p.Poll())
}

// A driver that makes available, then notifies, and a device that polls, then
// looks: nothing is left unseen, however they meet.
func TestPolledLosesNothing(t *testing.T) {
	p, w, _ := newPolled(t)
	fd, m, err := shm.NewMemory("ring", 4096)
	require.NoError(t, err)
	defer m.Close()
	defer unix.Close(fd)
	avail := shm.Of(m.Bytes())

	const total = 200_000
	go func() {
		for i := uint32(1); i <= total; i++ {
			avail.Store32(0, i)
			w.Store16(0, 0)
		}
	}()
	deadline := time.Now().Add(30 * time.Second)
	for seen := uint32(0); seen < total; {
		if p.Poll() {
			seen = avail.Load32(0)
		}
		require.True(t, time.Now().Before(deadline), "a write was lost after %d", seen)
	}
}

func TestPaceSpinsThenBacksOff(t *testing.T) {
	p := NewPace(100, 10, 50)
	now := time.Unix(1, 0)
	require.EqualValues(t, 50, p.Next(now, false), "nothing yet: as slow as it gets")
	require.Zero(t, p.Next(now, true))
	require.Zero(t, p.Next(now.Add(99), false))
	for quiet, want := range map[time.Duration]time.Duration{100: 10, 160: 10, 320: 20, 799: 49, 800: 50, 1e9: 50} {
		require.Equal(t, want, p.Next(now.Add(quiet), false), "%d", quiet)
	}
	require.Zero(t, p.Next(now.Add(200), true))
}

func BenchmarkPollQuiet(b *testing.B) {
	fd, m, err := shm.NewMemory("notify", 4096)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	defer unix.Close(fd)
	bell, err := NewTrapped()
	if err != nil {
		b.Fatal(err)
	}
	defer bell.Close()
	p := NewPolled(shm.Of(m.Bytes()), bell)
	for b.Loop() {
		p.Poll()
	}
}
