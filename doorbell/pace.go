package doorbell

import "time"

// Pace says how long to wait between two looks at something that is polled: not
// at all while there is much to see, and longer and longer when there is not. The
// longest wait bounds how late anything is noticed.
//
// The zero Pace is not ready; NewPace makes one. It is for one goroutine.
type Pace struct {
	spin  time.Duration
	least time.Duration
	most  time.Duration

	seen time.Time // when there was last something to see
	wait time.Duration
}

// NewPace returns a pace that does not wait for spin after something was seen,
// and then waits from least up to most, doubling.
func NewPace(spin, least, most time.Duration) *Pace {
	return &Pace{spin: spin, least: least, most: most, wait: most}
}

// Next returns how long to wait before the next look at the time now, given
// whether this look saw something. 0 means not at all.
func (p *Pace) Next(now time.Time, saw bool) time.Duration {
	switch {
	case saw:
		p.seen, p.wait = now, 0
	case p.wait == 0 && now.Sub(p.seen) >= p.spin:
		p.wait = p.least
	case p.wait > 0:
		p.wait = min(2*p.wait, p.most)
	}
	return p.wait
}
