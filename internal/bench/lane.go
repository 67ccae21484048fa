package bench

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// ErrIO reports a request that the device did not execute.
var ErrIO = errors.New("request failed")

// patience bounds the wait for a completion.
const patience = 30 * time.Second

// phase is where a run is.
type phase = int32

const (
	ramping   phase = iota // load, not measured yet
	measuring              // load, measured
	stopping               // what is in flight is waited for
)

// lane is the driver of one queue, on a thread of its own.
type lane struct {
	job   *Job
	q     *rc.Queue
	phase *atomic.Int32
	base  time.Time // of all times
	hiPri bool
	cpu   int // to run on, -1 for any
	tid   int // of the thread

	span   span
	cursor uint64 // next block in a sequential run, and in the final check
	rng    rng

	list, done []*rc.Request
	data       [][]byte // by tag, as all below
	started    []int64  // ns since base
	at         []uint64 // block, from the start of the lane's span
	cells      []cell   // by block, in verified runs

	latency Histogram // of requests that ended while measuring

	// What others may look at while the lane runs.
	reads, writes, checked atomic.Uint64
}

// cell is what a verified run knows of a block: how often it was written, and
// whether a request for it is in flight.
type cell uint32

const busy cell = 1 << 31

func newLane(id int, j *Job, q *rc.Queue, list []*rc.Request, s span) *lane {
	l := &lane{
		job: j, q: q, span: s, cpu: -1, rng: newRNG(j.Seed, id),
		list: list, done: make([]*rc.Request, 0, j.Depth),
		started: make([]int64, j.Depth), at: make([]uint64, j.Depth),
	}
	if len(j.CPUs) > 0 {
		l.cpu = j.CPUs[id%len(j.CPUs)]
	}
	if j.Verify {
		l.cells = make([]cell, s.n)
	}
	for _, r := range list {
		b := r.Data()
		l.data = append(l.data, b)
		stamp(b, l.rng.next(), 0, 0) // nothing that a disk could compress away
	}
	return l
}

// run executes the job, and reads back what a verified one wrote. ready is called
// when the thread is known.
func (l *lane) run(ready func()) error {
	runtime.LockOSThread() // never given back: it may be pinned
	l.tid = unix.Gettid()
	ready()
	if l.cpu >= 0 {
		if err := pin(l.cpu); err != nil {
			return err
		}
	}
	if l.hiPri {
		l.q.DisableInterrupts()
	}
	if err := l.pump(l.next); err != nil {
		return err
	}
	if !l.job.Verify {
		return nil
	}
	l.cursor = 0
	return l.pump(l.nextCheck)
}

// pump keeps all requests in flight, each as next makes it, until there is no
// next one.
func (l *lane) pump(next func(r *rc.Request) bool) error {
	todo, now := l.list, l.now()
	for {
		for _, r := range todo {
			if !next(r) {
				break
			}
			l.started[r.Tag] = now
			if err := l.q.Submit(r); err != nil {
				return err
			}
		}
		if err := l.q.Kick(); err != nil {
			return err
		}
		if l.q.InFlight() == 0 {
			return nil
		}
		if err := l.reap(); err != nil {
			return err
		}
		now = l.now()
		if err := l.account(now); err != nil {
			return err
		}
		todo = l.done
	}
}

func (l *lane) now() int64 { return int64(time.Since(l.base)) }

// reap waits for completions and takes all there are.
func (l *lane) reap() (err error) {
	if !l.hiPri {
		l.done, err = l.q.Wait(l.done[:0], patience)
		return err
	}
	const look = 1 << 16 // polls between two looks at the clock
	var since int64
	for n := 1; ; n++ {
		if l.done, err = l.q.Poll(l.done[:0]); err != nil || len(l.done) > 0 {
			return err
		}
		if n%look == 0 {
			if now := l.now(); since == 0 {
				since = now
			} else if now-since > int64(patience) {
				return fmt.Errorf("%w: %d requests in flight", rc.ErrTimeout, l.q.InFlight())
			}
		}
	}
}

// account notes what has just been reaped.
func (l *lane) account(now int64) error {
	counted := l.phase.Load() == measuring
	var reads, writes uint64
	for _, r := range l.done {
		if r.Status != virtioblk.StatusOK {
			return fmt.Errorf("%w: %v of %d bytes at %d: %v", ErrIO, r.Type, r.Len, l.offset(l.at[r.Tag]), r.Status)
		}
		if r.Type == virtioblk.TypeIn {
			reads++
		} else {
			writes++
		}
		if l.cells != nil {
			if err := l.settle(r); err != nil {
				return err
			}
		}
		if counted {
			l.latency.Add(now - l.started[r.Tag])
		}
	}
	l.reads.Add(reads)
	l.writes.Add(writes)
	return nil
}

// next makes the next request of the load.
func (l *lane) next(r *rc.Request) bool {
	if l.phase.Load() == stopping {
		return false
	}
	r.Type = virtioblk.TypeIn
	if m := l.job.ReadMix; m < 100 && (m == 0 || l.below(100) >= uint64(m)) {
		r.Type = virtioblk.TypeOut
	}
	block := l.pick()
	l.aim(r, block)
	if l.cells != nil {
		l.cells[block] |= busy
		if r.Type == virtioblk.TypeOut {
			stamp(l.data[r.Tag], l.job.Seed, l.offset(block), uint32(l.cells[block]&^busy)+1)
		} else {
			clear(l.data[r.Tag]) // or what was there could pass for what was read
		}
	}
	return true
}

// nextCheck makes the next request of the final check of what was written.
func (l *lane) nextCheck(r *rc.Request) bool {
	for ; l.cursor < l.span.n; l.cursor++ {
		if l.cells[l.cursor] == 0 {
			continue
		}
		r.Type = virtioblk.TypeIn
		clear(l.data[r.Tag])
		l.aim(r, l.cursor)
		l.cursor++
		return true
	}
	return false
}

// settle checks a read, or notes a write, in a verified run.
func (l *lane) settle(r *rc.Request) error {
	block := l.at[r.Tag]
	c := &l.cells[block]
	*c &^= busy
	switch {
	case r.Type == virtioblk.TypeOut:
		*c = (*c + 1) &^ busy
	case *c != 0:
		l.checked.Add(1)
		return inspect(l.data[r.Tag], l.job.Seed, l.offset(block), uint32(*c))
	}
	return nil
}

// pick chooses a block. In a verified run it is one that no request is in flight
// for.
func (l *lane) pick() uint64 {
	block := l.cursor
	if l.job.Random {
		block = l.below(l.span.n)
	}
	if l.cells != nil {
		for l.cells[block]&busy != 0 {
			if block++; block == l.span.n {
				block = 0
			}
		}
	}
	if l.cursor = block + 1; l.cursor == l.span.n {
		l.cursor = 0
	}
	return block
}

// below returns a random number below n.
func (l *lane) below(n uint64) uint64 {
	hi, _ := bits.Mul64(l.rng.next(), n)
	return hi
}

func (l *lane) aim(r *rc.Request, block uint64) {
	l.at[r.Tag] = block
	r.Sector = l.offset(block) / virtioblk.SectorSize
}

// offset returns where a block of the lane is on the disk, in bytes.
func (l *lane) offset(block uint64) uint64 {
	return uint64(l.job.Offset) + (l.span.first+block)*uint64(l.job.Block)
}
