package epfbackend

import "time"

// limiter lets through one log line a second, and counts what it held back: a
// peer that errs on each request must not fill the log.
type limiter struct {
	next time.Time
	held int
}

// allow says whether to log now, and how many lines were held back before.
func (l *limiter) allow() (ok bool, held int) {
	now := time.Now()
	if now.Before(l.next) {
		l.held++
		return false, 0
	}
	l.next, held, l.held = now.Add(time.Second), l.held, 0
	return true, held
}
