package disk

import (
	"sync"

	"github.com/vblk-ep/vblk-ep/internal/eventfd"
)

// spans are the ranges of a disk that are being modified, by all of its engines.
// An exclusive one waits for all earlier ones that it overlaps, and later ones
// that overlap it wait for it: first come, first served, so nobody starves. The
// others do not exclude one another, and as long as there is no exclusive one
// nothing is compared.
type spans struct {
	mu          sync.Mutex
	first, last *span // in order of arrival
	exclusive   int   // of them
	waiting     int   // of them
}

// span is one range, from its operation's start to its end. Its memory is the
// operation's.
type span struct {
	from, to  int64 // in bytes
	exclusive bool
	owner     *emulatedEngine // nil while it is in no list
	io        *IO             // what waits for it
	blockers  int             // earlier spans that it waits for

	before, after *span // guarded by spans.mu
	granted       *span // the next in its owner's list
}

func (s *span) excludes(o *span) bool {
	return (s.exclusive || o.exclusive) && s.from < o.to && o.from < s.to
}

// enter adds s, which its owner has filled in. It reports whether s may begin at
// once; if not, it will be granted.
func (l *spans) enter(s *span) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.blockers = 0
	if s.exclusive || l.exclusive > 0 {
		for o := l.first; o != nil; o = o.after {
			if o.excludes(s) {
				s.blockers++
			}
		}
	}
	s.before, s.after = l.last, nil
	if l.last == nil {
		l.first = s
	} else {
		l.last.after = s
	}
	l.last = s
	if s.exclusive {
		l.exclusive++
	}
	if s.blockers > 0 {
		l.waiting++
	}
	return s.blockers == 0
}

// leave removes s, whether or not it was granted, and grants those that waited for
// nothing else.
func (l *spans) leave(s *span) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.remove(s)
}

func (l *spans) remove(s *span) {
	if s.blockers > 0 {
		l.waiting--
	}
	for o := s.after; o != nil && l.waiting > 0; o = o.after {
		if !s.excludes(o) {
			continue
		}
		if o.blockers--; o.blockers == 0 {
			l.waiting--
			o.owner.grant(o, s.owner)
		}
	}
	if s.exclusive {
		l.exclusive--
	}
	if s.before == nil {
		l.first = s.after
	} else {
		s.before.after = s.after
	}
	if s.after == nil {
		l.last = s.before
	} else {
		s.after.before = s.before
	}
	s.before, s.after, s.owner = nil, nil, nil
}

// leaveAll removes all spans of an engine that has ended.
func (l *spans) leaveAll(e *emulatedEngine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := l.first; s != nil; {
		next := s.after
		if s.owner == e {
			l.remove(s)
		}
		s = next
	}
	e.granted = nil
}

// granted returns the spans of e that were granted since it was last called.
func (l *spans) granted(e *emulatedEngine) *span {
	if !e.owed.Load() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := e.granted
	e.granted = nil
	e.owed.Store(false)
	return s
}

// grant notes that a span of e may begin. Another engine wakes e up; e itself
// looks anyhow. The caller holds spans.mu.
func (e *emulatedEngine) grant(s *span, by *emulatedEngine) {
	s.granted = e.granted
	e.granted = s
	e.owed.Store(true)
	if by != e {
		_ = eventfd.Ring(e.doorbell)
	}
}
