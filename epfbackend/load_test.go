package epfbackend_test

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

const areaSize = 16 << 10 // of the disk, for each request of a load

// load keeps requests in flight on a queue. Each writes its area of the disk,
// reads it back, and compares.
type load struct {
	q     *rc.Queue
	first int // area
	slots []slot
	done  []*rc.Request
	count atomic.Int64 // requests that were completed, and right
	alone atomic.Bool  // nobody will answer any more
}

type slot struct {
	*rc.Request
	want []byte
	seed byte
}

func newLoad(t testing.TB, q *rc.Queue, depth, first int) *load {
	l := &load{q: q, first: first, slots: make([]slot, depth), done: make([]*rc.Request, 0, depth)}
	for i := range l.slots {
		r, err := q.NewRequest(areaSize)
		require.NoError(t, err)
		l.slots[i] = slot{Request: r, want: make([]byte, areaSize), seed: byte(i)}
	}
	return l
}

// submit submits all requests anew, as writes.
func (l *load) submit() error {
	for i := range l.slots {
		s := &l.slots[i]
		s.Type = virtioblk.TypeIn
		if err := l.next(i); err != nil {
			return err
		}
	}
	return l.q.Kick()
}

// next submits what follows in slot i: a read after a write, and the reverse.
func (l *load) next(i int) error {
	s := &l.slots[i]
	s.Sector = uint64(l.first+i) * areaSize / sector
	if s.Type == virtioblk.TypeOut {
		s.Type = virtioblk.TypeIn
		clear(s.Data())
	} else {
		s.Type = virtioblk.TypeOut
		s.seed += 7
		for j := range s.want {
			s.want[j] = s.seed + byte(j) + byte(j>>8)
		}
		copy(s.Data(), s.want)
	}
	return l.q.Submit(s.Request)
}

func (l *load) index(r *rc.Request) int {
	for i := range l.slots {
		if l.slots[i].Request == r {
			return i
		}
	}
	return -1
}

// turn waits for some requests, and submits others if more is set.
func (l *load) turn(more bool) (err error) {
	start := time.Now()
	l.done, err = l.q.Wait(l.done[:0], 50*time.Millisecond)
	for errors.Is(err, rc.ErrTimeout) && time.Since(start) < patience && !l.alone.Load() {
		l.done, err = l.q.Wait(l.done[:0], 50*time.Millisecond)
	}
	if err != nil {
		return err
	}
	for _, r := range l.done {
		i := l.index(r)
		switch s := &l.slots[i]; {
		case r.Status != virtioblk.StatusOK:
			return fmt.Errorf("%v at sector %d: %v", r.Type, r.Sector, r.Status)
		case r.Type == virtioblk.TypeIn && !bytes.Equal(s.want, s.Data()):
			return fmt.Errorf("sector %d does not read as it was written", r.Sector)
		}
		l.count.Add(1)
		if more {
			if err := l.next(i); err != nil {
				return err
			}
		}
	}
	return l.q.Kick()
}

// run goes on until stop is set, and then waits for the rest.
func (l *load) run(stop *atomic.Bool) error {
	if err := l.submit(); err != nil {
		return err
	}
	for !stop.Load() {
		if err := l.turn(true); err != nil {
			return err
		}
	}
	for l.q.InFlight() > 0 {
		if err := l.turn(false); err != nil {
			return err
		}
	}
	return nil
}

// loads runs several loads until meanwhile returns.
func loads(t testing.TB, meanwhile func(), list ...*load) {
	t.Helper()
	var stop atomic.Bool
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	for i, l := range list {
		wg.Go(func() { errs[i] = l.run(&stop) })
	}
	meanwhile()
	stop.Store(true)
	wg.Wait()
	for i, err := range errs {
		if !list[i].alone.Load() {
			require.NoError(t, err)
		}
	}
}

// progress waits until a load has completed n more requests.
func (l *load) progress(t testing.TB, n int64) {
	t.Helper()
	from := l.count.Load()
	require.Eventually(t, func() bool { return l.count.Load() >= from+n }, patience, time.Millisecond)
}
