package epfbackend

// This file has the disk engine hold the memory that it does direct I/O on.

// pinMemory has the disk engine hold what it does direct I/O on: our own buffers, and
// lent memory if that is wanted. Other memory does as well.
func (w *worker) pinMemory() {
	w.pinned = w.pinned[:0]
	if w.pool.memory != nil {
		w.pinned = append(w.pinned, w.pool.memory)
	}
	if w.pins() {
		for _, r := range w.ctl.Memory().Regions() {
			if r.Mem != nil && r.Readable && r.Writable {
				w.pinned = append(w.pinned, r.Mem)
			}
		}
	}
	if len(w.pinned) == 0 {
		return
	}
	if err := w.engine.Pin(w.pinned...); err != nil {
		w.notPinned(err)
	}
}

// notPinned tells those who asked for it.
func (w *worker) notPinned(err error) {
	if !w.pins() {
		w.log.Debug("buffers not pinned", "err", err)
	} else if ok, held := w.complain.allow(); ok {
		w.log.Warn("host memory not pinned: raise the limit of locked memory (ulimit -l) if it is that",
			"err", err, "held_back", held)
	}
}

// pins says whether lent memory is to be held.
func (w *worker) pins() bool { return w.f.opts.PinMemory && !w.f.opts.TrapFree }

// letGo gives up host memory, which may change during a pause.
func (w *worker) letGo() {
	if w.pins() {
		if err := w.engine.Pin(); err != nil {
			w.log.Warn("host memory is still held", "err", err)
		}
	}
}
