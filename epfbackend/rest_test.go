package epfbackend

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
)

// movedRing is a ring of a host whose memory map changes. It counts how often it is
// looked for there, and may have something happen the first time.
type movedRing struct {
	vring.Queue
	t         *testing.T
	looks     int
	meanwhile func()
	inFlight  int
}

func (r *movedRing) Resolve() error {
	if r.looks++; r.looks == 1 && r.meanwhile != nil {
		r.meanwhile()
	}
	require.Less(r.t, r.looks, 4)
	return r.Queue.Resolve()
}

func (r *movedRing) InFlight() int { return r.inFlight }

// Whoever leaves a pause has the ring where it is now, and counts as running, so that
// the next pause waits for it.
func TestLeavingAPause(t *testing.T) {
	for name, c := range map[string]struct {
		next      phase
		inFlight  int
		meanwhile func(g *gate)
		looks     int
	}{
		"to run":              {running, 0, func(*gate) {}, 1},
		"to finish":           {drained, 1, func(*gate) {}, 1},
		"past another pause":  {running, 0, func(g *gate) { g.ask(paused); g.ask(running) }, 2},
		"from another resume": {running, 0, func(g *gate) { g.ask(running) }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTurns(t, "null:1M", 1, false, false).w
			r := &movedRing{Queue: w.ring, t: t, inFlight: c.inFlight, meanwhile: func() { c.meanwhile(w.gate) }}
			w.ring = r
			w.gate.ask(c.next) // by the time that it is at rest
			require.True(t, w.rest(paused))
			require.Equal(t, c.looks, r.looks)
			require.Equal(t, running, w.gate.at)
		})
	}
}

// Where nothing is to be done for another kind of rest, the worker is there, also without
// its ring on the map. It does not leave for a stop.
func TestOneRestAfterAnother(t *testing.T) {
	w := newTurns(t, "null:1M", 1, false, false).w
	r := &movedRing{Queue: w.ring, t: t}
	w.ring = r
	w.gate.ask(drained)
	ended := make(chan bool)
	go func() { ended <- w.rest(paused) }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	assert.NoError(t, w.gate.await(ctx, drained))
	w.gate.ask(paused)
	assert.NoError(t, w.gate.await(ctx, paused))
	w.gate.ask(stopped)
	require.False(t, <-ended)
	require.Zero(t, r.looks)
}
