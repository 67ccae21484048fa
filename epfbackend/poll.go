package epfbackend

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Poll says how long the worker of a queue, when it has nothing to do, looks at
// the ring and at the disk by itself before it sleeps until it is woken. To be
// woken costs some microseconds, on both sides: a driver that is looked at need
// not ring its doorbell. To look costs a processor.
//
// A Poll above zero is that time. The zero Poll is PollAuto.
type Poll time.Duration

const (
	// PollAuto looks for as long as that has lately been worth it, for at most 100
	// microseconds.
	PollAuto Poll = 0
	// PollOff sleeps at once.
	PollOff Poll = -1
	// PollAlways never sleeps, and so also serves drivers that never ring their
	// doorbell.
	PollAlways Poll = -2
)

// ErrPoll reports a text that is no Poll.
var ErrPoll = errors.New("no way of polling")

// ParsePoll is the inverse of String. It also takes a number of microseconds.
func ParsePoll(s string) (Poll, error) {
	switch s {
	case "auto":
		return PollAuto, nil
	case "off":
		return PollOff, nil
	case "always":
		return PollAlways, nil
	}
	d, err := time.ParseDuration(s)
	if n, number := strconv.ParseUint(s, 10, 32); number == nil {
		d, err = time.Duration(n)*time.Microsecond, nil
	}
	if err != nil || d <= 0 {
		return PollAuto, fmt.Errorf("%w: %q", ErrPoll, s)
	}
	return Poll(d), nil
}

func (p Poll) String() string {
	switch p {
	case PollAuto:
		return "auto"
	case PollOff:
		return "off"
	case PollAlways:
		return "always"
	}
	return time.Duration(p).String()
}

// autoLeast is the shortest time that PollAuto looks, but for none.
const autoLeast = 4 * time.Microsecond

// cause is what a worker waits for, besides its gate.
type cause int

const (
	forDriver  cause = iota // nothing is in flight
	forDisk                 // one request is, or for the driver
	forSeveral              // several are, or for the driver
)

// autoMost is the longest time that PollAuto looks. Not to be woken by a driver spares
// its notification, too, which may be a message through other threads; not to be woken
// by the disk spares our sleep alone. While several requests are in flight, one is
// slept for as others complete, and to look for each would only take the processor
// from the disk's own work.
var autoMost = [...]time.Duration{
	forDriver:  100 * time.Microsecond,
	forDisk:    100 * time.Microsecond,
	forSeveral: 0,
}

// pollPace decides how long one worker looks before it sleeps. With PollAuto that is
// what it would have taken lately not to sleep: a short wait with a sleep in it makes
// it longer, and a long one makes it shorter. So an idle queue costs nothing, and
// the first requests after a pause are slower than those that follow.
type pollPace struct {
	mode   Poll
	window [len(autoMost)]time.Duration // of PollAuto
}

// budget returns how long to look: 0 not at all, below 0 for ever.
func (p *pollPace) budget(c cause) time.Duration {
	switch p.mode {
	case PollAuto:
		return p.window[c]
	case PollOff:
		return 0
	}
	return time.Duration(p.mode)
}

// waited notes that a wait took d, and that there was a sleep in it. It is for PollAuto.
func (p *pollPace) waited(c cause, d time.Duration) {
	w := &p.window[c]
	switch {
	case d < autoMost[c]:
		*w = min(max(2**w, autoLeast), autoMost[c])
	case *w > autoLeast:
		*w /= 2
	default:
		*w = 0
	}
}
