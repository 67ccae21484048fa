package disktest

import (
	"sync"
	"time"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/internal/eventfd"
)

// Rule says what becomes of some operations. The first rule that matches an
// operation is the one that counts.
type Rule struct {
	// Which operations: of these kinds (none: all), that touch the bytes from From
	// up to To (To 0: all; a Flush touches none, and matches then only).
	Ops      []disk.Op
	From, To int64

	// Of those, the first Skip are let through, and then Count are caught (0: all).
	Skip, Count int

	// What becomes of them: they are held for Delay and until Until is closed (nil:
	// no longer than that), and then fail with Err without having touched the disk, or
	// are done if Err is nil.
	Delay time.Duration
	Until <-chan struct{}
	Err   error
}

// hold returns when what the rule caught is to be held no longer.
func (r *Rule) hold() {
	time.Sleep(r.Delay)
	if r.Until != nil {
		<-r.Until
	}
}

func (r *Rule) matches(io *disk.IO) bool {
	kind := len(r.Ops) == 0
	for _, op := range r.Ops {
		kind = kind || op == io.Op
	}
	if !kind || r.To == 0 {
		return kind
	}
	return io.Op != disk.Flush && io.Offset < r.To && io.Offset+io.Length > r.From
}

// Faults is a store whose operations may be caught by rules. Its Store is used
// for all the rest.
type Faults struct {
	disk.Store

	mu     sync.Mutex
	rules  []*Rule
	caught int
}

// Wrap returns s with faults. The rules may be added to later.
func Wrap(s disk.Store, rules ...Rule) *Faults {
	f := &Faults{Store: s}
	f.Add(rules...)
	return f
}

// Add adds rules behind those that there are.
func (f *Faults) Add(rules ...Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range rules {
		f.rules = append(f.rules, &r)
	}
}

// Clear takes all rules away. Operations that are held go on being held.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
}

// Caught returns how many operations rules have caught.
func (f *Faults) Caught() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.caught
}

// Flush implements disk.Store, subject to the rules for disk.Flush.
func (f *Faults) Flush() error {
	if r := f.judge(&disk.IO{Op: disk.Flush}); r != nil {
		r.hold()
		if r.Err != nil {
			return r.Err
		}
	}
	return f.Store.Flush()
}

// judge returns the rule that catches io, or nil.
func (f *Faults) judge(io *disk.IO) *Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		switch {
		case !r.matches(io) || r.Count < 0:
		case r.Skip > 0:
			r.Skip--
		default:
			if r.Count > 0 {
				if r.Count--; r.Count == 0 {
					r.Count = -1 // used up
				}
			}
			f.caught++
			return r
		}
	}
	return nil
}

// NewEngine implements disk.Store. When a hold ends, the engine rings doorbell
// to be looked at; so its user sees more rings than were sent.
func (f *Faults) NewEngine(kind disk.EngineKind, depth, doorbell int) (disk.Engine, error) {
	e, err := f.Store.NewEngine(kind, depth, doorbell)
	if err != nil {
		return nil, err
	}
	return &engine{Engine: e, faults: f, doorbell: doorbell}, nil
}

// engine holds operations back.
type engine struct {
	disk.Engine
	faults   *Faults
	doorbell int
	failed   []*disk.IO // to be returned by the next Wait
	out      []*disk.IO // what Wait returned
	holds    sync.WaitGroup

	mu  sync.Mutex
	due []held
}

type held struct {
	io  *disk.IO
	err error
}

func (e *engine) Start(io *disk.IO) {
	switch r := e.faults.judge(io); {
	case r == nil:
		e.Engine.Start(io)
	case r.Delay > 0 || r.Until != nil:
		e.holds.Go(func() {
			r.hold()
			e.mu.Lock()
			e.due = append(e.due, held{io, r.Err})
			e.mu.Unlock()
			_ = eventfd.Ring(e.doorbell)
		})
	default:
		e.finish(held{io, r.Err})
	}
}

func (e *engine) finish(h held) {
	if h.err == nil {
		e.Engine.Start(h.io)
		return
	}
	h.io.Err = h.err
	e.failed = append(e.failed, h.io)
}

func (e *engine) Wait(block bool) ([]*disk.IO, bool, error) {
	e.release()
	done, rung, err := e.Engine.Wait(block && len(e.failed) == 0)
	e.out = append(append(e.out[:0], e.failed...), done...)
	e.failed = e.failed[:0]
	return e.out, rung, err
}

func (e *engine) Ready() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.failed) > 0 || len(e.due) > 0 || e.Engine.Ready()
}

// release lets go of what was held long enough.
func (e *engine) release() {
	e.mu.Lock()
	due := e.due
	e.due = nil
	e.mu.Unlock()
	for _, h := range due {
		e.finish(h)
	}
}

// Close waits for what is held, too.
func (e *engine) Close() error {
	e.holds.Wait()
	e.release()
	return e.Engine.Close()
}
