package regfile

import (
	"fmt"

	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// captures is what has been seen of a driver that sets up several queues. They
// share one set of registers: what stands there at DRIVER_OK is the last one's,
// which queue_select tells, and the others must be caught on the way.
//
// A queue is captured when its addresses were seen while it was selected, and
// were seen again, the same, after another queue was selected: a driver that has
// moved on has written them all. A first look that came too early (the addresses
// of the queue before, or half of these) is not repeated after the driver moved
// on, with one exception: what stood there from a driver before may be what a
// later queue of this one gets. Then two queues have an area in common, which
// collect refuses. So what is served was set up for the queue it is served as.
//
// Before the first look a mark is left in driver_feature_select, which every
// driver writes when it begins and none reads; what it accepts is not looked at.
// If the mark is gone, another driver has begun and everything so far is
// forgotten, though nobody may have seen its reset. A driver that lets go of its
// queues and sets others up without negotiating again (Linux, if a queue gets no
// interrupt) selects a lower queue and then changes addresses: what was captured
// before is forgotten too. That can be missed, if nobody looks for as long as it
// takes; nothing in the registers would tell. With one queue there is no such
// question.
type captures struct {
	open     bool
	enabling bool // the driver enables queues: it selects them without setting them up
	wound    bool // a lower queue was selected than before, and nothing changed since
	last     look
	queues   []captured
}

// mark is what is left in driver_feature_select. No driver selects it.
const (
	mark     = 0x80000000
	markWord = virtiopci.DriverFeatureSelect
)

type captured struct {
	ok       bool
	doubtful bool // a lower queue was selected since
	vector   uint16
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
	if !c.open || m.Load32(markWord) != mark {
		*c = captures{open: true, queues: make([]captured, t.cfg.Queues)}
		m.Store32(markWord, mark)
		t.clearEnable() // another driver may have left it
	}
	before := m.Load32(statusWord)
	now := look{ok: true, sel: int(before >> 16)}
	now.vector = t.read(&now.standing)
	if t.clearEnable() {
		c.enabling = true
	}
	if m.Load32(markWord) != mark || m.Load32(statusWord) != before {
		return
	}
	if was := &c.last; was.ok {
		same := was.addresses == now.addresses
		if c.wound && !same {
			c.wound = false
			c.forgetDoubtful()
		}
		if same && was.sel != now.sel && !c.enabling && now.vector != virtiopci.NoVector && was.sel < len(c.queues) {
			t.captured(was, now.vector)
		}
		if now.sel < was.sel {
			c.wound = true
			c.doubt()
		}
	}
	c.last = now
}

// verifyCaptures forgets what was captured from another driver than the one that
// is ready now.
func (t *TrapFree) verifyCaptures() {
	if t.cfg.Common.Load32(markWord) != mark {
		t.captures = captures{}
	}
}

func (c *captures) doubt() {
	for i := range c.queues {
		c.queues[i].doubtful = true
	}
}

func (c *captures) forgetDoubtful() {
	for i := range c.queues {
		if c.queues[i].doubtful {
			c.queues[i] = captured{}
		}
	}
}

// captured notes a queue. Its size was written before its addresses, its vector
// after them and before another queue was selected; a driver that takes queues
// back leaves no vector behind.
func (t *TrapFree) captured(l *look, vector uint16) {
	q := &t.captures.queues[l.sel]
	if !q.ok || q.doubtful {
		*q = captured{ok: true, standing: l.standing, vector: vector}
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
