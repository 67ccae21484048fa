package epfuser

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
	"github.com/vblk-ep/vblk-ep/internal/uring"
)

// holdingRing is an io_uring with a completion that the kernel holds back: the first
// calls get nothing.
type holdingRing struct {
	kernelRing
	calls, needed int
	ready         []uring.CQE
}

func (r *holdingRing) Next() *uring.SQE { return new(uring.SQE) }
func (r *holdingRing) Prepared() int    { return 0 }
func (r *holdingRing) Ready() int       { return len(r.ready) }
func (r *holdingRing) Due() bool        { return r.calls < r.needed }

func (r *holdingRing) Submit() error {
	if !r.Due() {
		return nil
	}
	if r.calls++; r.calls == r.needed {
		r.ready = append(r.ready, uring.CQE{})
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
	const needed = 4
	memory := make([]byte, 64)
	ring := &holdingRing{needed: needed}
	m := newMover(&ringEngine{dev: new(epfdev.Device), ring: ring}, limits{1, 1, 64}, 1, memory, newBell(t))
	v := &epc.Move{Parts: []epc.Part{{Local: memory}}}
	m.Start(v)
	require.NoError(t, m.Submit())
	require.True(t, rung(t, m), "after a submission")
	for range needed/2 - 1 { // each asks twice
		require.Empty(t, m.Completed())
		require.True(t, rung(t, m), "after nothing was found")
	}
	require.Equal(t, []*epc.Move{v}, m.Completed())
	require.NoError(t, v.Err)
	require.False(t, rung(t, m), "nothing is left")
}

// The kernel's mark that there are completions may come after they were taken, and then
// stays until the next. Who takes it at its word never sleeps again, and asks for nothing
// at each look.
func TestMarkThatComesLate(t *testing.T) {
	memory := make([]byte, 64)
	ring := &holdingRing{needed: 2}
	m := newMover(&ringEngine{dev: new(epfdev.Device), ring: ring}, limits{1, 1, 64}, 1, memory, newBell(t))
	m.Start(&epc.Move{Parts: []epc.Part{{Local: memory}}})
	require.NoError(t, m.Submit())
	require.True(t, rung(t, m))
	require.Len(t, m.Completed(), 1)
	calls := ring.calls
	ring.needed = 1000
	require.NoError(t, m.Submit())
	require.Empty(t, m.Completed())
	require.False(t, rung(t, m), "there is nothing that could be found")
	require.Equal(t, calls, ring.calls)
}
