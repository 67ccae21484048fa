package loopback

import (
	"sync"
	"time"
)

// Clock is the time in which modelled hardware works: it jumps from one event to
// the next, so that what a model measures does not depend on the machine that it
// runs on. Events of the same time happen in the order in which they were planned.
//
// Somebody has to make it go: who waits for something calls Step, or a goroutine
// (Run) lets everything happen as soon as it can.
type Clock struct {
	mu     sync.Mutex
	now    time.Duration
	count  uint64  // of events planned so far
	events []event // a heap, the next first
	more   sync.Cond
	ended  bool
	done   chan struct{}
	step   func()
}

type event struct {
	at    time.Duration
	order uint64
	do    func(arg int)
	arg   int
}

func (e *event) before(f *event) bool {
	return e.at < f.at || e.at == f.at && e.order < f.order
}

// NewClock returns a clock at time 0.
func NewClock() *Clock {
	c := new(Clock)
	c.more.L = &c.mu
	return c
}

// Now returns the time since the clock was made.
func (c *Clock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// After plans do(arg) for a time that is d away. It is called by whoever makes the
// clock go, with the clock locked: it may plan more with the clock's own methods
// only if they say so.
func (c *Clock) After(d time.Duration, do func(arg int), arg int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plan(c.now+d, do, arg)
}

// OnStep has f called after each event, and whenever else the device has written to
// host memory, with the clock unlocked: f sees what a host could see. It must not make
// the clock go.
func (c *Clock) OnStep(f func()) { c.step = f }

func (c *Clock) stepped() {
	if c.step != nil {
		c.step()
	}
}

// Step lets the next event happen. It returns false if there is none.
func (c *Clock) Step() bool {
	c.mu.Lock()
	ok := len(c.events) > 0
	if ok {
		c.next()
	}
	c.mu.Unlock()
	if ok {
		c.stepped()
	}
	return ok
}

// Sleep lets everything happen that is planned for the next d.
func (c *Clock) Sleep(d time.Duration) {
	c.mu.Lock()
	until := c.now + d
	c.mu.Unlock()
	c.sleepUntil(until)
}

func (c *Clock) sleepUntil(t time.Duration) {
	for {
		c.mu.Lock()
		if len(c.events) == 0 || c.events[0].at > t {
			c.now = max(c.now, t)
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		c.Step()
	}
}

// Run starts a goroutine that makes the clock go, until Stop.
func (c *Clock) Run() {
	c.done = make(chan struct{})
	go func() {
		defer close(c.done)
		for c.await() {
			c.Step()
		}
	}()
}

// await waits for an event, and returns false after Stop.
func (c *Clock) await() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.events) == 0 && !c.ended {
		c.more.Wait()
	}
	return !c.ended
}

// runs says whether a goroutine makes the clock go.
func (c *Clock) runs() bool { return c.done != nil }

// Stop ends what Run has started.
func (c *Clock) Stop() {
	if !c.runs() {
		return
	}
	c.mu.Lock()
	c.ended = true
	c.more.Broadcast()
	c.mu.Unlock()
	<-c.done
}

// next lets the next event happen. The caller holds c.mu.
func (c *Clock) next() {
	e := c.events[0]
	last := len(c.events) - 1
	c.events[0] = c.events[last]
	c.events = c.events[:last]
	c.sift(0)
	c.now = max(c.now, e.at)
	e.do(e.arg)
}

// plan is After for an absolute time. The caller holds c.mu.
func (c *Clock) plan(at time.Duration, do func(arg int), arg int) {
	c.count++
	c.events = append(c.events, event{at, c.count, do, arg})
	for i := len(c.events) - 1; i > 0; {
		up := (i - 1) / 2
		if !c.events[i].before(&c.events[up]) {
			break
		}
		c.events[i], c.events[up] = c.events[up], c.events[i]
		i = up
	}
	c.more.Signal()
}

// sift moves event i to its place among those below it.
func (c *Clock) sift(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(c.events); child++ {
			if c.events[child].before(&c.events[least]) {
				least = child
			}
		}
		if least == i {
			return
		}
		c.events[i], c.events[least] = c.events[least], c.events[i]
		i = least
	}
}
