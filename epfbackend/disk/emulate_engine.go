package disk

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxJobs bounds the operations of one engine that are not made of whole blocks
// and are under way; the rest stands in line. It bounds their memory, too: two
// blocks each, which are allocated when a job is first done.
const maxJobs = 32

// emulatedEngine is an engine of an emulated store, above one of the store below.
type emulatedEngine struct {
	s        *emulated
	inner    Engine
	doorbell int
	depth    int
	inFlight int
	started  bool // something, since inner.Wait was last called

	line []*IO  // operations that wait for a job
	jobs []*job // all
	free []*job // those not in use
	done []*IO  // since the last Wait
	out  []*IO  // what Wait returned

	copying *job // what copyEdges is about
	copy    func() error

	owed    atomic.Bool // granted is not empty
	granted *span       // guarded by spans.mu
}

func (e *emulatedEngine) Name() string { return e.inner.Name() }

func (e *emulatedEngine) Start(io *IO) {
	io.job, io.span.owner = nil, nil
	if e.inFlight == e.depth {
		io.fail(unix.EBUSY)
		e.done = append(e.done, io)
		return
	}
	e.inFlight++
	switch {
	case e.s.straight(io):
		if io.Op == Read || io.Op == Flush || e.enter(io, io.Offset, io.Offset+io.Length, false) {
			e.toDisk(io)
		}
	case !e.s.sound(io):
		e.toDisk(io)
	case io.Op == SecureErase: // there is no erasing in part, and nothing may be left
		io.fail(unix.EINVAL)
		e.complete(io)
	default:
		e.line = append(e.line, io)
		e.serve()
	}
}

// enter claims a range for io. It reports whether that is granted at once.
func (e *emulatedEngine) enter(io *IO, from, to int64, exclusive bool) bool {
	s := &io.span
	s.from, s.to, s.exclusive, s.owner, s.io = from, to, exclusive, e, io
	return e.s.spans.enter(s)
}

func (e *emulatedEngine) toDisk(io *IO) {
	e.started = true
	e.inner.Start(io)
}

// serve starts what may be started: what has waited for others to be done, and what
// has waited for a job. To end one of these may let others begin.
func (e *emulatedEngine) serve() {
	for e.owed.Load() || len(e.line) > 0 && len(e.free) > 0 {
		for s := e.s.spans.granted(e); s != nil; {
			io := s.io
			s = s.granted
			if io.job != nil {
				e.first(io.job)
			} else {
				e.toDisk(io)
			}
		}
		if len(e.line) > 0 && len(e.free) > 0 {
			io := e.line[0]
			e.line = e.line[:copy(e.line, e.line[1:])]
			j := e.free[len(e.free)-1]
			e.free = e.free[:len(e.free)-1]
			e.begin(j, io)
		}
	}
}

func (e *emulatedEngine) Wait(block bool) ([]*IO, bool, error) {
	rung, woken := false, false
	for {
		sleep := block && !rung && !woken && len(e.done) == 0
		done, bell, err := e.inner.Wait(sleep)
		if err != nil {
			return nil, false, err
		}
		e.started = false
		rung = rung || bell
		woken = woken || sleep && !bell && len(done) == 0
		for _, io := range done {
			if io.job != nil {
				e.advance(io.job, io.Err)
			} else {
				e.complete(io)
			}
		}
		e.serve()
		// What was started is handed to the kernel before the worker goes on.
		if !e.started && (rung || woken || len(e.done) > 0 || !block) {
			break
		}
	}
	e.done, e.out = e.out[:0], e.done
	return e.out, rung, nil
}

// Listen implements Engine.
func (e *emulatedEngine) Listen(bell int) { e.inner.Listen(bell) }

// Pin implements Engine.
func (e *emulatedEngine) Pin(memory ...[]byte) error { return e.inner.Pin(memory...) }

// Ready implements Engine.
func (e *emulatedEngine) Ready() bool {
	return len(e.done) > 0 || e.owed.Load() || e.inner.Ready()
}

// complete ends an operation.
func (e *emulatedEngine) complete(io *IO) {
	if io.span.owner != nil {
		e.s.spans.leave(&io.span)
	}
	e.inFlight--
	e.done = append(e.done, io)
}

func (e *emulatedEngine) Close() error {
	if e.inner == nil {
		return nil
	}
	err := e.inner.Close()
	e.inner = nil
	e.s.spans.leaveAll(e)
	for _, j := range e.jobs {
		j.release()
	}
	return err
}
