package lab

import (
	"sync"
	"time"
)

// postedCredits is how many writes of the RC may be on their way.
const postedCredits = 256

// completionTimeout bounds how long the RC waits for an endpoint that stands
// still. Its monitor gives up on the function after five seconds.
var completionTimeout = 2 * time.Second // longer in a test

// postedWrite is a write of the RC to something in the endpoint's guest.
type postedWrite struct {
	addr uint64
	n    int
	data [8]byte
}

// postedQueue carries the RC's posted writes to the endpoint's guest, in order.
// Those that go to plain memory need it only while others are on their way. So
// the RC's processor never waits for the endpoint's guest, which may be waiting
// for the RC.
type postedQueue struct {
	mu      sync.Mutex
	changed sync.Cond
	waiting []postedWrite
	spare   []postedWrite
	busy    bool
	closed  bool
}

func (q *postedQueue) init() {
	q.changed.L = &q.mu
	q.waiting = make([]postedWrite, 0, postedCredits)
	q.spare = make([]postedWrite, 0, postedCredits)
}

// put sends a write of up to eight bytes on its way, and says whether there was
// room for it.
func (q *postedQueue) put(addr uint64, p []byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.wait(func() bool { return len(q.waiting) < postedCredits }) {
		return false
	}
	w := postedWrite{addr: addr, n: len(p)}
	copy(w.data[:], p)
	q.waiting = append(q.waiting, w)
	q.changed.Broadcast()
	return true
}

// wait waits until the condition holds, and says whether it does: not if the queue
// is closed, or the endpoint stands still. The caller holds q.mu.
func (q *postedQueue) wait(condition func() bool) bool {
	if condition() || q.closed {
		return !q.closed
	}
	late := false
	t := time.AfterFunc(completionTimeout, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		late = true
		q.changed.Broadcast()
	})
	defer t.Stop()
	for !condition() && !q.closed && !late {
		q.changed.Wait()
	}
	return condition() && !q.closed
}

// idle says whether nothing is on its way.
func (q *postedQueue) idle() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting) == 0 && !q.busy
}

// flush waits until nothing is on its way, and says whether that is so.
func (q *postedQueue) flush() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.wait(func() bool { return len(q.waiting) == 0 && !q.busy })
}

// run executes what is put, until the queue is closed.
func (q *postedQueue) run(execute func(*postedWrite)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.waiting) == 0 && !q.closed {
			q.changed.Wait()
		}
		if q.closed {
			return
		}
		batch := q.waiting
		q.waiting, q.busy = q.spare[:0], true
		q.changed.Broadcast()
		q.mu.Unlock()
		for n := range batch {
			execute(&batch[n])
		}
		q.mu.Lock()
		q.spare, q.busy = batch, false
		q.changed.Broadcast()
	}
}

// close drops what is on its way and ends run.
func (q *postedQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.waiting = q.waiting[:0]
	q.changed.Broadcast()
}
