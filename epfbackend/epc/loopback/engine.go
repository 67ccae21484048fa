package loopback

import (
	"math/rand/v2"
	"time"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
)

// Engine is a model of a DMA engine and of the link that it uses. It reaches the
// memory of the host that it is plugged in with (PlugEngine), so it serves one slot.
//
// Posted writes are in host memory as soon as they were sent. On a link they may
// stay behind, but nobody could tell: they do not pass each other, and interrupts
// and read requests do not pass them. What can be told is the order in which
// different channels send, and when a read takes place; that is what Link.Shuffle is
// about.
type Engine struct {
	clock *Clock
	link  Link
	host  *hostMemory
	rng   *rand.Rand // nil: in order

	// All below belongs to who holds clock.mu.
	channels []channel
	waiting  []*job // for a channel
	down, up lane
	inFlight int           // moves submitted and not ended
	since    time.Duration // when inFlight changed last
	traffic  Traffic
}

// lane is one direction of the link.
type lane struct{ freeAt time.Duration }

// channel executes one job at a time.
type channel struct {
	job     *job
	arrived func(int) // an event: a segment has been moved; its argument is in the ring
	flying  []flight  // by argument
	free    []int
}

// flight is a segment on its way.
type flight struct {
	addr  uint64
	local []byte
}

// NewEngine returns an engine in a time of its own.
func NewEngine(clock *Clock, link Link) *Engine {
	e := &Engine{clock: clock, link: link, channels: make([]channel, link.Channels)}
	if link.Shuffle != 0 {
		e.rng = rand.New(rand.NewPCG(link.Shuffle, 1))
	}
	for i := range e.channels {
		c := &e.channels[i]
		c.flying = make([]flight, link.Reads)
		c.arrived = func(n int) { e.arrive(c, n) }
		for n := range link.Reads {
			c.free = append(c.free, n)
		}
	}
	return e
}

// Traffic returns what has happened since the engine was made.
func (e *Engine) Traffic() Traffic {
	e.clock.mu.Lock()
	defer e.clock.mu.Unlock()
	e.account()
	return e.traffic
}

// idle says whether no move is in flight.
func (e *Engine) idle() bool {
	e.clock.mu.Lock()
	defer e.clock.mu.Unlock()
	return e.inFlight == 0
}

// account notes how long how many moves have been in flight.
func (e *Engine) account() {
	d := e.clock.now - e.since
	e.since = e.clock.now
	if e.inFlight > 0 {
		e.traffic.BusyTime += d
	}
	e.traffic.MovesByTime += d * time.Duration(e.inFlight)
}

// change notes that n moves more are in flight.
func (e *Engine) change(n int) {
	e.account()
	e.inFlight += n
	e.traffic.MostMoves = max(e.traffic.MostMoves, e.inFlight)
}

// take reserves the lane for n bytes that are there at a time, and returns when the
// last of them has passed.
func (e *Engine) take(l *lane, at time.Duration, n int) time.Duration {
	l.freeAt = max(at, l.freeAt)
	if b := e.link.Bandwidth; b > 0 {
		l.freeAt += time.Duration(int64(n) * int64(time.Second) / b)
	}
	return l.freeAt
}

// dispatch gives jobs that wait to channels that are idle.
func (e *Engine) dispatch() {
	for i := range e.channels {
		c := &e.channels[i]
		if c.job != nil || len(e.waiting) == 0 {
			continue
		}
		n := 0
		if e.rng != nil {
			n = e.rng.IntN(len(e.waiting))
		}
		c.job = e.waiting[n]
		e.waiting = append(e.waiting[:n], e.waiting[n+1:]...)
		e.proceed(c)
	}
}

// proceed puts as much of the channel's job on its way as may be at a time, and ends
// it when all has arrived.
func (e *Engine) proceed(c *channel) {
	j := c.job
	limit := 1 // posted writes of a move stay in order
	if j.move.Dir == epc.FromHost {
		limit = len(c.flying)
	}
	for len(c.flying)-len(c.free) < limit {
		addr, local := j.cut(e.link.Segment, e.link.Boundary)
		if len(local) == 0 {
			break
		}
		n := c.free[len(c.free)-1]
		c.free = c.free[:len(c.free)-1]
		c.flying[n] = flight{addr, local}
		e.traffic.Segments++
		e.clock.plan(e.passes(j.move.Dir == epc.ToHost, addr, len(local)), c.arrived, n)
	}
	if len(c.free) == len(c.flying) {
		c.job = nil
		e.change(-1)
		e.traffic.Moves++
		j.mover.end(j)
		e.dispatch()
	}
}

// passes returns when n bytes will have passed the link, and counts them.
func (e *Engine) passes(write bool, addr uint64, n int) time.Duration {
	at, l := e.clock.now+e.link.RoundTrip, &e.down
	if write {
		at, l = e.clock.now, &e.up
		e.traffic.ToHost += int64(n)
	} else {
		e.traffic.FromHost += int64(n)
	}
	e.traffic.Packets += packets(write, addr, n)
	t := e.take(l, at, n)
	if e.rng != nil {
		t += time.Duration(e.rng.Int64N(int64(4*e.link.RoundTrip + time.Microsecond)))
	}
	return t
}

// arrive is the event that a segment has been moved.
func (e *Engine) arrive(c *channel, n int) {
	f := c.flying[n]
	c.flying[n] = flight{}
	c.free = append(c.free, n)
	j := c.job
	if err := e.host.dma(j.move.Dir == epc.ToHost, f.addr, f.local); err != nil && j.err == nil {
		j.err = err
	}
	e.proceed(c)
}

// transfer is a transfer that the processor makes, and for a read waits for. It is
// called with the clock unlocked, before the transfer takes place.
func (e *Engine) transfer(write bool, addr uint64, n int) {
	e.clock.mu.Lock()
	if write {
		e.traffic.Writes++
	} else {
		e.traffic.Reads++
	}
	t := e.passes(write, addr, n)
	if !write {
		if e.link.Interleaves {
			t = e.clock.now + e.link.RoundTrip
		}
		e.traffic.WaitTime += t - e.clock.now
	}
	e.clock.mu.Unlock()
	if !write && !e.clock.runs() {
		e.clock.sleepUntil(t)
	}
}

// interrupt counts a message.
func (e *Engine) interrupt() {
	e.clock.mu.Lock()
	defer e.clock.mu.Unlock()
	e.traffic.Interrupts++
	e.traffic.Packets++
}
