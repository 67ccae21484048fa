package regfile

import (
	"fmt"

	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// captures is what has been seen of a driver that sets up several queues. They
// share one set of registers: what stands there at DRIVER_OK is the last one's,
// which queue_select tells, and the others must be caught on the way.
//
// A queue is captured when its addresses were seen while it was selected, and were
// seen again, the same, after another queue was selected: a driver that has moved on
// has written them all. Or else when its vector was seen to change while it was
// selected: a driver writes that last. A first look that came too early (the
// addresses of the queue before, or half of these) is not repeated after the driver
// moved on, with one exception: what stood there from a driver before may be what a
// later queue of this one gets. Then two queues have an area in common, which collect
// refuses. So what is served was set up for the queue it is served as.
//
// Before the first look a mark is left in driver_feature_select, which every
// driver writes when it begins and none reads; what it accepts is not looked at.
// If the mark is gone, another driver has begun and everything so far is
// forgotten, though nobody may have seen its reset.
//
// A driver that lets go of its queues and sets others up without negotiating again
// (Linux, if a queue gets no interrupt) writes config_msix_vector anew before it
// does. So once it is seen to set up a queue a mark is left there, too: the driver has
// read its vector back by then, and does not look again. The vector is put back when
// the queues are started. A driver without such a vector cannot have several queues.
type captures struct {
	open     bool
	enabling bool // the driver enables queues: it selects them without setting them up
	marked   bool // configMark was put in place of vector
	vector   uint16
	last     look
	moves    uint64 // looks that differed from the one before
	queues   []captured
}

// selectMark is what is left in driver_feature_select. No driver selects it.
const (
	selectMark = 0x80000000
	markWord   = virtiopci.DriverFeatureSelect
)

// configMark is what is left in config_msix_vector. No device has so many.
const configMark = 0xfffe

type captured struct {
	ok     bool
	vector uint16
	standing
}

// look is one look at all that a driver writes when it sets up a queue.
type look struct {
	ok     bool
	sel    int
	vector uint16
	standing
}

// capture takes a look while a driver sets up several queues.
func (t *TrapFree) capture() {
	m, c := t.cfg.Common, &t.captures
	if !c.open || t.newSetUp() {
		*c = captures{open: true, moves: c.moves + 1, queues: make([]captured, t.cfg.Queues)}
		m.Store32(markWord, selectMark)
		t.clearEnable() // another driver may have left it
	}
	before := m.Load32(statusWord)
	now := look{ok: true, sel: int(before >> 16)}
	now.vector = t.read(&now.standing)
	if t.clearEnable() {
		c.enabling = true
	}
	if t.newSetUp() || m.Load32(statusWord) != before {
		return
	}
	was := c.last
	if was != now {
		c.moves++
	}
	c.last = now
	switch {
	case !was.ok || c.enabling:
	case !c.marked:
		if was != now {
			t.mark()
			c.last.ok = false // what is captured was looked at with the mark in place
		}
	case int(now.vector) >= t.cfg.Vectors:
	case was.sel != now.sel && was.addresses == now.addresses:
		c.captured(&was, now.vector)
	case was.sel == now.sel && was.vector != now.vector:
		c.captured(&now, now.vector)
	}
}

// newSetUp says whether what was captured is of another set-up than the one that
// stands in the registers.
func (t *TrapFree) newSetUp() bool {
	m := t.cfg.Common
	return m.Load32(markWord) != selectMark ||
		t.captures.marked && uint16(m.Load32(vectorWord)) != configMark
}

// captured notes a queue. Its size was written before its addresses, its vector
// after them and before another queue was selected; a driver that takes queues back
// leaves no vector behind.
func (c *captures) captured(l *look, vector uint16) {
	if l.sel < len(c.queues) && !c.queues[l.sel].ok {
		c.queues[l.sel] = captured{ok: true, standing: l.standing, vector: vector}
	}
}

// mark leaves configMark, if the driver has a vector there.
func (t *TrapFree) mark() {
	w := t.cfg.Common.Load32(vectorWord)
	if int(uint16(w)) < t.cfg.Vectors && t.cfg.Common.CompareAndSwap32(vectorWord, w, w&^0xffff|configMark) {
		t.captures.marked, t.captures.vector = true, uint16(w)
	}
}

// unmark puts the driver's vector for configuration changes back.
func (t *TrapFree) unmark() {
	w := t.cfg.Common.Load32(vectorWord)
	if t.captures.marked && uint16(w) == configMark {
		t.cfg.Common.CompareAndSwap32(vectorWord, w, w&^0xffff|uint32(t.captures.vector))
	}
}

// collect puts together the queues of an activation from the captures and, for
// the last one, which is selected, from what stands in the registers. If one is
// missing none is served: its requests would never be answered.
func (t *TrapFree) collect(a *activation, sel int, vector uint16) error {
	if t.cfg.Queues == 1 {
		sel = 0
	}
	if sel >= t.cfg.Queues {
		return fmt.Errorf("%w: queue %d is selected, but there are %d; unbind the driver and bind it again",
			ErrSetUp, sel, t.cfg.Queues)
	}
	var missed []int
	for i := range sel {
		if i >= len(t.captures.queues) || !t.captures.queues[i].ok {
			missed = append(missed, i)
			continue
		}
		t.stats.Captured++
		c := &t.captures.queues[i]
		a.queues = append(a.queues, c.queue())
		a.vectors = append(a.vectors, c.vector)
	}
	if len(missed) != 0 {
		t.stats.Missed += uint64(len(missed))
		return fmt.Errorf("%w: queues %v of %d were not captured; unbind the driver and bind it again while the endpoint is less loaded, or offer one queue",
			ErrSetUp, missed, sel+1)
	}
	a.queues = append(a.queues, a.queue())
	a.vectors = append(a.vectors, vector)
	return t.checkQueues(a.queues)
}

func (t *TrapFree) checkQueues(queues []Queue) error {
	for i, q := range queues {
		if err := t.checkSize(i, q.Size); err != nil {
			return err
		}
		for j, p := range queues[:i] {
			if q.Desc == p.Desc || q.Driver == p.Driver || q.Device == p.Device {
				t.stats.Missed++
				return fmt.Errorf("%w: queues %d and %d seem to share memory, so one was captured wrongly; unbind the driver and bind it again, or offer one queue",
					ErrSetUp, j, i)
			}
		}
	}
	return nil
}
