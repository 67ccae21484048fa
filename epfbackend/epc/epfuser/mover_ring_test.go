package epfuser

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/eventfd"
	"github.com/vblk-ep/vblk-ep/internal/uring"
)

// holdingRing is an io_uring with a completion that the kernel holds back: the first
// calls get nothing.
type holdingRing struct {
	kernelRing
	calls, needed int
	ready         []uring.CQE
}

func (r *holdingRing) Prepared() int { return 0 }
func (r *holdingRing) Ready() int    { return len(r.ready) }
func (r *holdingRing) Due() bool     { return r.calls < r.needed }

func (r *holdingRing) Submit() error {
	if !r.Due() {
		return nil
	}
	if r.calls++; r.calls == r.needed {
		r.ready = append(r.ready, uring.CQE{UserData: 7})
	}
	return nil
}

func (r *holdingRing) Reap(out []uring.CQE) int {
	n := copy(out, r.ready)
	r.ready = r.ready[n:]
	return n
}

// Linux 7.2 may not hand over completions when it is asked to, and not ring for them
// again. Who then sleeps until the bell rings sleeps for ever.
func TestCompletionThatIsHeldBack(t *testing.T) {
	bell, err := eventfd.New()
	require.NoError(t, err)
	defer unix.Close(bell)
	rung := func() bool {
		var b [8]byte
		_, err := unix.Read(bell, b[:])
		return err == nil
	}
	const needed = 4
	e := &ringEngine{ring: &holdingRing{needed: needed}, bell: bell}
	var ended []int
	reap := func() error {
		return e.reap(func(tag int, err error) {
			require.NoError(t, err)
			ended = append(ended, tag)
		})
	}
	require.NoError(t, e.submit())
	require.True(t, rung(), "after a submission")
	for range needed - 2 {
		require.NoError(t, reap())
		require.Empty(t, ended)
		require.True(t, rung(), "after nothing was found")
	}
	require.NoError(t, reap())
	require.Equal(t, []int{7}, ended)
	require.False(t, rung(), "nothing is left")
}
