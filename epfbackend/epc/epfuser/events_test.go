package epfuser

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// resets counts what the end of a link asks a function for.
type resets struct {
	epc.Function
	n int
}

// HostGone, for nothing says that the link is down now.
func (r *resets) HostGone(context.Context) error {
	r.n++
	return nil
}

// Events of before the function was attached are no news, those that were lost are the
// end of a link, and all others are what they say.
func TestEventsThatAreNews(t *testing.T) {
	fn := new(resets)
	s := &Slot{fn: fn, dev: new(epfdev.Device), state: make(state, 4096), log: slog.New(slog.DiscardHandler)}
	s.state.saw(5)
	up := uint32(epfdev.LinkUp | epfdev.BusMaster | epfdev.BusMasterKnown)
	for _, c := range []struct {
		event  epfdev.Event
		resets int
		seen   uint64
	}{
		{epfdev.Event{Type: epfdev.EventLinkDown, Sequence: 4}, 0, 5},
		{epfdev.Event{Type: epfdev.EventDeinit, Sequence: 5}, 0, 5},
		{epfdev.Event{Type: epfdev.EventLinkUp, Status: up, Sequence: 6}, 0, 6},
		{epfdev.Event{Type: epfdev.EventLinkDown, Sequence: 7}, 1, 7},
		{epfdev.Event{Type: epfdev.EventBusMaster, Status: up, Sequence: 8}, 1, 8},
		{epfdev.Event{Type: epfdev.EventBusMaster, Status: up, Sequence: 73}, 2, 73},
		{epfdev.Event{Type: epfdev.EventInit, Status: up, Sequence: 74}, 2, 74},
	} {
		s.handle(c.event)
		require.Equal(t, c.resets, fn.n, "%+v", c.event)
		require.Equal(t, c.seen, s.state.seen())
	}

	// Also the first one that there is.
	s.state.saw(74)
	s.handle(epfdev.Event{Type: epfdev.EventBusMaster, Status: up, Sequence: 140})
	require.Equal(t, 3, fn.n)
}
