package doorbell

import "time"

// patience is how many looks a Pace spends on as long a time as it has been
// quiet: something that comes after a pause is noticed a small part of that pause
// late.
const patience = 16

// Pace says how long to wait between two looks at something that is polled: not
// at all while there is much to see, and the longer, the longer there was nothing.
// The longest wait bounds how late anything is noticed.
//
// It is for one goroutine.
type Pace struct {
	spin, least, most time.Duration

	seen time.Time // when there was last something to see
}

// NewPace returns a pace that does not wait for spin after something was seen,
// then for a sixteenth of the time since, from least up to most.
func NewPace(spin, least, most time.Duration) *Pace {
	return &Pace{spin: spin, least: least, most: most}
}

// Next returns how long to wait before the next look at the time now, given
// whether this look saw something. 0 means not at all.
func (p *Pace) Next(now time.Time, saw bool) time.Duration {
	if saw {
		p.seen = now
	}
	quiet := now.Sub(p.seen)
	if quiet < p.spin {
		return 0
	}
	return min(max(quiet/patience, p.least), p.most)
}
