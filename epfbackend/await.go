package epfbackend

import (
	"fmt"
	"time"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/internal/shm"
)

const (
	// lookClock is how many looks are taken between two at the clock, which costs
	// as much as some of them.
	lookClock = 32

	// searchPause is the time between two looks for the ring of a driver that is
	// not asked to ring its doorbell, before it is known what format it has.
	searchPause = 200 * time.Microsecond
)

// started is the origin of times. To measure from it reads one clock, not two.
var started = time.Now()

// await hands what was started to the disk and returns what has completed. If
// there is nothing to do it waits: it looks for a while, as the worker's Poll has
// it, and then sleeps. An error is the engine's.
func (w *worker) await() ([]*disk.IO, error) {
	w.waiting = 0
	limit := w.pace.budget(w.cause())
	unknown := w.ring == nil && w.pace.mode != PollAlways // needs a doorbell
	if w.broken || limit == 0 || unknown || w.gate.wanted() != running {
		if w.unasked { // what is waited for has changed since
			return w.sleep()
		}
		return w.collect(!w.more)
	}
	for {
		done, err := w.collect(false)
		if err != nil || len(done) > 0 || len(w.moved) > 0 || w.more || w.rung {
			return done, err
		}
		if err := shm.Guard(w.lookGuard); err != nil {
			w.fail(fmt.Errorf("queue %d: %w", w.index, err))
		}
		switch {
		case w.more || w.broken || w.gate.wanted() != running:
			return nil, nil
		case w.late && !w.reap(): // the bell for moves may have been heard already
			return w.sleep()
		}
	}
}

// cause is what a wait would be for.
func (w *worker) cause() cause {
	if w.ring == nil {
		return forDriver
	}
	return cause(min(w.ring.InFlight(), int(forSeveral)))
}

// collect is a Wait of the engine. How long it was waited decides how long to look
// the next time.
func (w *worker) collect(block bool) ([]*disk.IO, error) {
	learns := block && w.pace.mode == PollAuto
	if learns && w.waiting == 0 {
		w.waiting = time.Since(started)
	}
	done, rung, err := w.engine.Wait(block)
	w.rung = w.rung || rung
	if learns {
		w.pace.waited(w.cause(), time.Since(started)-w.waiting)
	}
	return done, err
}

// sleep asks to be notified, and sleeps unless something has come meanwhile.
func (w *worker) sleep() ([]*disk.IO, error) {
	if err := shm.Guard(w.armGuard); err != nil {
		w.fail(fmt.Errorf("queue %d: %w", w.index, err))
	}
	return w.collect(!w.more)
}

// ready says whether DMA engine or disk may have completed something. Of the disk that can
// be wrong for as long as nothing completes there, since the kernel's mark that there is
// something to be taken may come after it was taken: so moves are taken first.
func (w *worker) ready() bool { return w.reap() || w.engine.Ready() }

// look returns when there may be something to do, or when nothing came in time: late. The
// ring is looked at each time, for it may be all that there is. It touches host memory, and
// may be cut short by a fault in it.
func (w *worker) look() error {
	limit := w.pace.budget(w.cause())
	if limit > 0 && w.waiting == 0 {
		w.waiting = time.Since(started)
	}
	for w.late = false; w.gate.wanted() == running; {
		if w.ring == nil {
			time.Sleep(searchPause)
			w.more = true
			return nil
		}
		if len(w.free) > 0 && !(w.asked && w.mover != nil) {
			if !w.live() {
				return nil
			}
			var err error
			if w.more, err = w.ring.Available(); w.more || err != nil {
				return err
			}
		}
		if w.looks++; w.looks%lookClock == 0 && limit > 0 && time.Since(started)-w.waiting > limit {
			w.late = true
			return nil
		}
		if w.ready() {
			return nil
		}
		shm.Pause()
	}
	return nil
}

// arm asks the driver to notify us of what it makes available next, unless a
// completion has to come first.
func (w *worker) arm() (err error) {
	if w.ring == nil || len(w.free) == 0 || !w.live() {
		return nil
	}
	w.unasked = false
	w.more, err = w.ring.EnableNotifications()
	w.asked = err == nil && !w.more
	if err == nil {
		err = w.mem.flush()
	}
	return err
}
