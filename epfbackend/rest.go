package epfbackend

// This file is how a worker comes to rest, for a pause of its function or for good, and goes
// on after it.

// ask tells the worker what is wanted of it. It may be called from any
// goroutine.
func (w *worker) ask(p phase) {
	w.gate.ask(p)
	w.f.bells[w.index].Ring()
}

// idle waits, with nothing to serve and nothing in flight, for the end.
func (w *worker) idle() {
	for want := w.gate.wanted(); want != stopped; want = w.gate.wanted() {
		w.gate.reach(want)
		w.gate.park(want)
	}
}

// quiet says that nothing in flight uses host memory. A flush or the like may
// take long, and can go on during a pause.
func (w *worker) quiet() bool {
	return w.lent == 0 && w.moving == 0 && len(w.done) == 0 && len(w.moved) == 0
}

// empty says that everything that was fetched is done and published, as far as it
// ever will be.
func (w *worker) empty() bool {
	return w.quiet() && (w.ring == nil || w.broken || w.ring.InFlight() == 0)
}

// restful says whether the worker may rest as it is wanted to.
func (w *worker) restful(want phase) bool {
	return want == paused && w.quiet() || want == drained && w.empty()
}

// proceeds says whether what was fetched is to go on.
func (w *worker) proceeds() bool {
	want := w.gate.wanted()
	return want == running || want == drained
}

// rest stays until the worker is to go on, and the ring is on the map of host memory,
// which may have changed. It says whether that is so; otherwise the worker is to stop.
func (w *worker) rest(at phase) bool {
	for {
		w.gate.reach(at)
		w.gate.park(at)
		asked := w.gate.asked()
		want := w.gate.wanted()
		if want == stopped {
			return false
		}
		if w.restful(want) {
			at = want
			continue
		}
		if w.ring != nil && !w.broken {
			if err := w.ring.Resolve(); err != nil {
				w.log.Debug("ring memory is not there", "err", err)
				w.gate.sleep(asked)
				continue
			}
		}
		if w.gate.pass(asked) {
			w.more, w.asked = true, false
			return true
		}
	}
}
