package regfile

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// This file explores every interleaving of a script's steps with the endpoint's
// accesses: a driver's step may come between any two loads, stores or swaps of
// any call of the endpoint's, there may be any number of calls between two steps,
// or none, and a stop may take any time. It is a search of the whole graph of
// states, so "any number" is meant. A call that has begun is resumed by being
// played again with the values that it has read so far.

// most is how many queues a modelled device has.
const most = 3

// runs is an activation, comparable and without its epoch.
type runs struct {
	ok, refused, broken bool
	standing
	n       int
	queues  [most]Queue
	vectors [most]uint16
}

func (r *runs) is(want []Queue) bool {
	return r.ok && !r.refused && slices.Equal(r.queues[:r.n], want)
}

// watch is captures, comparable.
type watch struct {
	open, enabling, marked bool
	vector                 uint16
	last                   look
	queues                 [most]captured
}

// state is a node of the graph.
type state struct {
	mem  image
	pc   int  // of the driver
	pace int8 // 1: queue_enable was written; 2: a sample has begun since; 0: it has ended

	// The endpoint as it was before the call under way, and that call.
	runs     *runs // interned, as now and watch are
	draining bool  // a stop is under way
	watch    *watch
	generation,
	calls uint8 // how often it was asked to do something else than to sample
	owed bool
	call call
	past string // what the call has read so far

	// What stands now, in the middle of the call.
	now    *runs
	fresh  bool // it was started by this call
	served int  // the set-up for which Live was true since it was started
}

type call uint8

const (
	idle call = iota
	sampling
	failing  // NeedsReset
	resizing // UpdateDeviceConfig
)

// model is a search.
type model struct {
	t      testing.TB
	script *script
	crash  bool // let a driver be cut short anywhere by the next one's reset
	unpace bool // let a driver look at queue_enable whenever it likes
	hole   bool // a flaw is expected, and noted instead of reported
	calls  int  // how often the endpoint may be asked for something else

	allRuns  map[runs]*runs
	allWatch map[watch]*watch
	states   []state
	parents  []int32
	known    map[state]int32
	ends     int    // states with the driver at rest
	served   int    // of these, ending with all queues served
	refused  int    // of these, ending with none, and the driver told
	flaw     string // of the driver's, instead of a failure
}

// setUp says whether a driver has q as its queue i.
func (m *model) setUp(i int, q Queue) bool {
	return slices.ContainsFunc(m.script.truths, func(t truth) bool {
		return t.live && i < len(t.queues) && t.queues[i] == q
	})
}

// activator is the function as a model sees it.
type activator struct {
	m        *model
	t        *TrapFree
	running  []Queue
	draining bool
	done     chan struct{}
}

func (a *activator) StartQueue(i int, q Queue) {
	if a.draining {
		a.m.fail("a queue is started while a stop is under way")
	}
	if i != len(a.running) || i >= a.m.script.num {
		a.m.fail(fmt.Sprintf("queue %d is started, %d run", i, len(a.running)))
	}
	if a.t.Epoch() == 0 {
		a.m.fail("no epoch to start with")
	}
	if !a.m.setUp(i, q) {
		a.m.fail(fmt.Sprintf("%v is started as queue %d, but no driver has set that up", q, i))
	}
	a.running = append(a.running, q)
}

func (a *activator) Stop() <-chan struct{} {
	if a.draining || len(a.running) == 0 {
		a.m.fail("stopped, but nothing runs")
	}
	if a.t.Epoch() != 0 {
		a.m.fail("stopped while Live may say yes")
	}
	a.running, a.draining, a.done = nil, true, make(chan struct{})
	return a.done
}

func (a *activator) WriteConfig([]byte, int, []byte) {}

func intern[T comparable](all map[T]*T, v T) *T {
	p, ok := all[v]
	if !ok {
		p = &v
		all[v] = p
	}
	return p
}

type failure string

func (m *model) fail(why string) { panic(failure(why)) }

// restore makes the register file of a state, with r as what runs.
func (m *model) restore(s *state, r *runs, common Memory) *TrapFree {
	t := &TrapFree{
		cfg: TrapFreeConfig{
			Word: m.script.offered, Queues: m.script.num, QueueSize: 256, Vectors: 8,
			Common: common, ISR: plain{0}, Device: plain{0, 0}, DeviceConfig: make([]byte, 8),
		},
		epoch: 1, generation: s.generation, owed: s.owed, config: make([]byte, 8),
	}
	if r.ok {
		a := &activation{standing: r.standing, epoch: 1, refused: r.refused, broken: r.broken}
		a.queues, a.vectors = slices.Clone(r.queues[:r.n]), slices.Clone(r.vectors[:r.n])
		t.now.Store(a)
	}
	w := s.watch
	t.captures = captures{open: w.open, enabling: w.enabling, marked: w.marked, vector: w.vector, last: w.last}
	if w.open {
		t.captures.queues = append(t.captures.queues, w.queues[:m.script.num]...)
	}
	return t
}

func runsOf(t *TrapFree) (r runs) {
	if a := t.now.Load(); a != nil {
		r = runs{ok: true, refused: a.refused, broken: a.broken, standing: a.standing, n: len(a.queues)}
		copy(r.queues[:], a.queues)
		copy(r.vectors[:], a.vectors)
	}
	return r
}

// resume plays the call under way up to the access after its last, or to its end.
func (m *model) resume(s state, whole bool) state {
	p := &tape{past: []byte(s.past), mem: &s.mem, whole: whole}
	t := m.restore(&s, s.runs, p)
	h := &activator{m: m, t: t, draining: s.draining}
	if s.runs.ok && !s.runs.refused {
		h.running = s.runs.queues[:s.runs.n]
	}
	if s.draining {
		h.done = make(chan struct{})
		t.stopping = h.done
	}
	t.h = h
	ended := m.play(t, s.call)
	now := intern(m.allRuns, runsOf(t))
	fresh := t.Epoch() > 1
	if fresh != s.fresh || now.ok != s.now.ok {
		s.served = 0
	}
	s.now, s.fresh, s.past = now, fresh, string(p.past)
	if now.ok && !now.refused && !slices.Equal(h.running, now.queues[:now.n]) {
		// The call was left between the queues' starts: nobody but the call has
		// seen it, and the rest of it touches no memory.
		m.fail(fmt.Sprintf("%v run, not %v", h.running, now.queues[:now.n]))
	}
	if !ended {
		return s
	}
	if s.call == sampling && s.pace == 2 {
		s.pace = 0
	}
	s.runs, s.fresh, s.draining = now, false, h.draining
	s.generation, s.owed = t.generation, t.owed
	c := &t.captures
	w := watch{open: c.open, enabling: c.enabling, marked: c.marked, vector: c.vector, last: c.last}
	copy(w.queues[:], c.queues)
	s.watch = intern(m.allWatch, w)
	s.call, s.past = idle, ""
	return s
}

func (m *model) play(t *TrapFree, c call) (ended bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(pause); !ok {
				panic(r)
			}
		}
	}()
	switch c {
	case sampling:
		if t.Sample() != nil && t.Epoch() == 0 {
			m.fail("an error, but nothing to remember it by")
		}
	case failing:
		t.NeedsReset()
	case resizing:
		t.UpdateDeviceConfig(func(config []byte) { config[0]++ })
	}
	return true
}

// drive takes the driver's next step and those behind it that the endpoint has
// nothing to do with.
func (m *model) drive(s state) (state, bool) {
	for {
		st := &m.script.steps[s.pc]
		if st.paced && s.pace != 0 && !m.unpace {
			return s, false
		}
		visits := st.visits
		if st.write {
			// What changes nothing is nothing to the endpoint.
			visits = visits && s.mem.read(st.off, st.width) != st.value
			s.mem.write(st.off, st.width, st.value)
			if st.off == virtiopci.QueueEnable && st.value == 1 {
				s.pace = 1
			}
		} else if got := s.mem.read(st.off, st.width); got&st.only != st.value&st.only {
			m.fail(fmt.Sprintf("the driver fails: %v reads %#x", *st, got))
		}
		s.pc++
		if visits || s.pc == len(m.script.steps) {
			return s, true
		}
	}
}

// cut ends a driver where it is: the next one's reset is the next step.
func (m *model) cut(s state) (next state, can bool) {
	for _, at := range m.script.resets {
		if at > s.pc {
			st := &m.script.steps[at]
			s.mem.write(st.off, st.width, st.value)
			s.pc = at + 1
			return s, true
		}
	}
	return s, false
}

// check is what must hold in each state, whoever would touch host memory now.
func (m *model) check(s *state) {
	if !s.now.ok || s.now.refused {
		return
	}
	t := m.restore(s, s.now, direct{&s.mem})
	if !t.Live(t.Epoch()) {
		return
	}
	now := m.script.truths[s.pc]
	switch {
	case !now.live:
		m.fail("Live after a reset")
	case !s.now.is(now.queues):
		m.fail(fmt.Sprintf("Live with %v, but the driver's are %v", s.now.queues[:s.now.n], now.queues))
	case s.served != 0 && s.served != now.set:
		m.fail("Live for a set-up that came after the one that was served")
	}
	s.served = now.set
}

// settle lets the endpoint come to rest after the driver has.
func (m *model) settle(s state) {
	for range 6 {
		if s.call == idle {
			s.draining, s.call = false, sampling
		}
		s = m.resume(s, true)
		m.check(&s)
	}
	m.ends++
	want := m.script.now
	switch {
	case !want.live && s.runs.ok:
		m.fail("something runs on after the last reset")
	case want.live && s.runs.refused && len(want.queues) > 1 && s.runs.broken:
		m.refused++ // a queue was missed, and nothing is served
	case want.live && !s.runs.is(want.queues):
		m.fail(fmt.Sprintf("%v do not run: %+v", want.queues, *s.runs))
	case want.live && s.served != want.set:
		m.fail("what was set up is not served")
	case want.live && s.runs.broken != (s.mem[virtiopci.DeviceStatus]&0x40 != 0):
		m.fail("DEVICE_NEEDS_RESET is not as it should be")
	case s.owed || s.mem[virtiopci.ConfigGeneration] != s.generation:
		m.fail("config_generation is not stored")
	case want.live && s.mem.read(virtiopci.QueueEnable, 2) != 0:
		m.fail("queue_enable is left at 1")
	case want.live:
		m.served++
		for i := range s.runs.vectors[:s.runs.n] {
			if len(want.queues) > 1 && s.runs.vectors[i] != uint16(i+1) {
				m.fail(fmt.Sprintf("queue %d interrupts by vector %d", i, s.runs.vectors[i]))
			}
		}
	}
}

// run explores and asserts that the search was one.
func (m *model) run() {
	m.t.Helper()
	m.explore()
	require.NotZero(m.t, m.ends)
	if m.script.now.live {
		require.NotZero(m.t, m.served)
	}
	m.t.Logf("%d states, %d of them with the driver at rest, %d served, %d refused", len(m.states), m.ends, m.served, m.refused)
}

// explore searches the graph from the image on.
func (m *model) explore() {
	m.t.Helper()
	m.known = map[state]int32{}
	m.visit(m.begin(), -1)
	for i := 0; i < len(m.states); i++ {
		if !m.expand(int32(i)) {
			return
		}
		if len(m.states) > 3_000_000 {
			m.t.Fatal("the graph is too large")
		}
	}
}

// begin returns the state at the start: the image is written, nothing has happened.
func (m *model) begin() (s state) {
	m.allRuns, m.allWatch = map[runs]*runs{}, map[watch]*watch{}
	s.runs, s.watch = intern(m.allRuns, runs{}), intern(m.allWatch, watch{})
	s.now = s.runs
	NewTrapFree(TrapFreeConfig{
		Word: m.script.offered, Queues: m.script.num, QueueSize: int(m.script.first),
		Common: direct{&s.mem}, ISR: plain{0}, Device: plain{0, 0}, DeviceConfig: make([]byte, 8),
	}, nil)
	return s
}

func (m *model) visit(s state, parent int32) {
	m.check(&s)
	if _, ok := m.known[s]; ok {
		return
	}
	m.known[s] = int32(len(m.states))
	m.states = append(m.states, s)
	m.parents = append(m.parents, parent)
}

func (m *model) expand(i int32) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			why, is := r.(failure)
			if !is {
				panic(r)
			}
			if m.flaw = string(why); !m.hole {
				m.trace(i)
				m.t.Errorf("%s", why)
			}
		}
	}()
	s := m.states[i]
	if s.pc < len(m.script.steps) {
		if next, can := m.drive(s); can {
			m.visit(next, i)
		}
	} else if s.call == idle {
		m.settle(s)
	}
	if m.crash {
		if next, can := m.cut(s); can {
			m.visit(next, i)
		}
	}
	if s.call != idle {
		m.visit(m.resume(s, false), i)
		return true
	}
	if s.draining {
		next := s
		next.draining = false
		m.visit(next, i)
	}
	m.visit(m.resume(m.call(s, sampling), false), i)
	if int(s.calls) < m.calls {
		m.visit(m.resume(m.call(s, failing), false), i)
		m.visit(m.resume(m.call(s, resizing), false), i)
	}
	return true
}

// call begins a call, up to its first access.
func (m *model) call(s state, c call) state {
	s.call = c
	if c == sampling && s.pace == 1 {
		s.pace = 2
	}
	if c != sampling {
		s.calls++
	}
	return s
}

func (m *model) trace(i int32) {
	var path []int32
	for ; i >= 0; i = m.parents[i] {
		path = append(path, i)
	}
	slices.Reverse(path)
	for k, i := range path {
		s := &m.states[i]
		if k > 0 && s.pc != m.states[path[k-1]].pc {
			m.t.Logf("driver: %v", m.script.steps[m.states[path[k-1]].pc:s.pc])
		} else {
			m.t.Logf("endpoint: call %d, %d bytes of past, runs %v", s.call, len(s.past), s.now.ok)
		}
	}
}
