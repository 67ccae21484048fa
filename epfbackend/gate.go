package epfbackend

import (
	"context"
	"sync"
	"sync/atomic"
)

// phase is what a queue worker is wanted to do, and what it does.
//
//	running ⇄ paused, drained
//	   ↓        ↓
//	     stopped
type phase int32

const (
	running phase = iota
	paused        // nothing in flight that uses host memory, ready to go on
	drained       // nothing fetched that is not done, ready to go on
	stopped       // nothing in flight
)

// gate is where a worker and those who steer it meet. They say what they want
// and may wait for it; the worker looks at each turn, and says where it is.
type gate struct {
	want atomic.Int32

	mu      sync.Mutex
	at      phase
	asks    uint64
	changed chan struct{} // closed and replaced whenever at or want changes
}

func newGate(at phase) *gate {
	g := &gate{at: at, changed: make(chan struct{})}
	g.want.Store(int32(at))
	return g
}

// ask says what is wanted from now on. Who is stopped stays stopped.
func (g *gate) ask(p phase) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if phase(g.want.Load()) != stopped {
		g.want.Store(int32(p))
		g.asks++
		g.announce()
	}
}

// asked counts what was asked so far.
func (g *gate) asked() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asks
}

// sleep is called by the worker, and returns once more was asked than then.
func (g *gate) sleep(then uint64) {
	_ = g.waitUntil(context.Background(), func() bool { return g.asks != then })
}

// wanted is what was last asked for.
func (g *gate) wanted() phase { return phase(g.want.Load()) }

// reach is called by the worker when it has come to p.
func (g *gate) reach(p phase) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.at != p {
		g.at = p
		g.announce()
	}
}

// pass is called by the worker to leave a pause, and says whether it may: not if more was
// asked since then, for that may have been another pause. It counts as running after it.
func (g *gate) pass(then uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asks != then {
		return false
	}
	g.at = running
	g.announce()
	return true
}

func (g *gate) announce() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// await returns once the worker is at p or stopped, or with the error of ctx.
func (g *gate) await(ctx context.Context, p phase) error {
	return g.waitUntil(ctx, func() bool { return g.at == p || g.at == stopped })
}

// park is called by the worker, and returns once something other than p is
// wanted.
func (g *gate) park(p phase) {
	_ = g.waitUntil(context.Background(), func() bool { return g.wanted() != p })
}

func (g *gate) waitUntil(ctx context.Context, met func() bool) error {
	for {
		g.mu.Lock()
		ok, changed := met(), g.changed
		g.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
