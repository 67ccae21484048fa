package epfuser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// Doorbell says which doorbell is wanted.
type Doorbell string

// Choices of a doorbell.
const (
	DoorbellAuto   Doorbell = "auto"   // the best there is
	DoorbellITS    Doorbell = "its"    // one interrupt for each queue, or an error
	DoorbellShared Doorbell = "shared" // one interrupt for all, or an error
	DoorbellPoll   Doorbell = "poll"   // none: memory is looked at
)

// Options of an endpoint. The zero value is ready for use.
type Options struct {
	Controller string   // its name; empty: the only one
	Doorbell   Doorbell // empty: DoorbellAuto
	NoDMA      bool     // the processor copies
	Keep       bool     // functions stay when we end, for the next server to go on
	Log        *slog.Logger
}

// Endpoint is a controller with our functions on it.
type Endpoint struct {
	opts   Options
	name   string
	config config
	log    *slog.Logger
	keep   atomic.Bool // functions stay when we end

	mu      sync.Mutex
	slots   []*Slot
	ready   int  // slots that are attached
	started bool // by us, or by who left us a function
}

// Open finds the controller and makes sure that functions can be made. The endpoint
// must be closed.
func Open(o Options) (*Endpoint, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Doorbell == "" {
		o.Doorbell = DoorbellAuto
	}
	c, err := openConfig()
	if err != nil {
		return nil, err
	}
	name, err := choose(o.Controller, c.controllers())
	if err != nil {
		return nil, err
	}
	if err := c.openDriver(); err != nil {
		return nil, err
	}
	e := &Endpoint{opts: o, name: name, config: c, log: o.Log.With("controller", name)}
	e.keep.Store(o.Keep)
	return e, nil
}

// Name returns the controller's name.
func (e *Endpoint) Name() string { return e.name }

// Add makes a function with room for that many queues, or takes over one of that name
// that another server has left for us, or has left behind when it died. One that cannot
// be taken over is removed first. The slot is closed with the endpoint, which leaves
// a function that was to be taken over, and was not served, as it is.
func (e *Endpoint) Add(name string, queues int) (_ *Slot, err error) {
	if s := e.adopt(name, queues); s != nil {
		e.slots, e.started = append(e.slots, s), true
		return s, nil
	}
	if err := e.clear(name); err != nil {
		return nil, err
	}
	if on, err := e.config.started(e.name); err != nil || on {
		return nil, errors.Join(err, fmt.Errorf("%w: %s serves %v: stop it, which takes them from their host, with echo 0 >%s",
			ErrStarted, e.name, e.config.bound(e.name), e.config.link(e.name, "start")))
	}
	channels := -1
	if e.opts.NoDMA {
		channels = 0
	}
	if err := e.config.create(name, channels); err != nil {
		return nil, err
	}
	if err = e.config.bind(name, e.name); err != nil {
		return nil, errors.Join(err, e.config.remove(name, e.name))
	}
	s := &Slot{e: e, name: name, log: e.log.With("function", name)}
	if err = s.open(queues); err != nil {
		return nil, errors.Join(err, s.close(), e.config.remove(name, e.name))
	}
	e.slots = append(e.slots, s)
	return s, nil
}

// Try returns a slot to look at what Add would find. No host sees anything of it: it is
// the function that would be taken over, or else one of another name.
func (e *Endpoint) Try(name string, queues int) (*Slot, error) {
	on, err := e.config.started(e.name)
	if err != nil {
		return nil, err
	}
	if !on || !exists(e.config.link(e.name, name)) {
		return e.Add(name+"-check", queues)
	}
	if e.taken(name) {
		return nil, takenError(name)
	}
	s := e.adopt(name, queues)
	if s == nil {
		return nil, fmt.Errorf("%w: %s: to serve is to make it anew, and its host has to look for it again", ErrLeft, name)
	}
	e.slots, e.started = append(e.slots, s), true
	return s, nil
}

func takenError(name string) error {
	return fmt.Errorf("%w: %s: stop that server, or name the disk by another path", ErrTaken, name)
}

// clear removes what a dead server left behind under a name.
func (e *Endpoint) clear(name string) error {
	if !exists(e.config.function(name)) {
		return nil
	}
	if exists(e.config.link(e.name, name)) {
		if e.taken(name) {
			return takenError(name)
		}
		for _, other := range e.config.bound(e.name) {
			if other != name && e.taken(other) {
				return fmt.Errorf("%w: %s serves %s, so that the function %s of a dead server cannot be replaced: stop that server first",
					ErrStarted, e.name, other, name)
			}
		}
		if err := e.config.start(e.name, false); err != nil {
			return fmt.Errorf("stop %s: %w", e.name, err)
		}
	}
	e.log.Warn("a function that a dead server has left is removed: the host has to look for it again", "function", name)
	return e.config.remove(name, e.name)
}

// taken says whether a function that is not of this endpoint is in use: it is another
// driver's, or has its device open.
func (e *Endpoint) taken(name string) bool {
	for _, s := range e.slots {
		if s.name == name {
			return false
		}
	}
	node, err := e.config.node(name)
	if err != nil {
		return true
	}
	d, err := epfdev.Open(node)
	if err == nil {
		_ = d.Close()
	}
	return errors.Is(err, unix.EBUSY)
}

// adopt returns the slot of a function that was left for us, nil if there is none.
func (e *Endpoint) adopt(name string, queues int) *Slot {
	node, err := e.config.node(name)
	if err != nil || !exists(e.config.link(e.name, name)) {
		return nil
	}
	d, err := openNode(node, unix.EBUSY)
	if err != nil {
		return nil
	}
	s := &Slot{e: e, name: name, dev: d, adopted: true, left: true, log: e.log.With("function", name)}
	if s.state, err = mapState(d); err == nil && s.goesOn(queues) {
		return s
	}
	_ = s.close()
	return nil
}

// nodeTime is how long a device node may take to appear, and to be left alone by
// those who look whose it is, or who have died and have transfers under way. The kernel
// lets nobody open it before these have ended, so none can end after what the next server
// does.
const nodeTime = 5 * time.Second

// openNode opens a device node, and waits for it while the error is one of those.
func openNode(path string, soon ...error) (d *epfdev.Device, err error) {
	for end := time.Now().Add(nodeTime); ; time.Sleep(time.Millisecond) {
		d, err = epfdev.Open(path)
		if !slices.ContainsFunc(soon, func(e error) bool { return errors.Is(err, e) }) || time.Now().After(end) {
			return d, err
		}
	}
}

// attached is told by each slot that its function is there. With the last one the
// controller is started: a host finds all functions or none.
func (e *Endpoint) attached() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ready++; e.ready < len(e.slots) {
		return nil
	}
	e.log.Info("the controller is started")
	if err := e.config.start(e.name, true); err != nil {
		return fmt.Errorf("start endpoint controller %s: %w: the kernel's log says why", e.name, err)
	}
	e.started = true
	return nil
}

// Close stops the controller, if we have started it, and removes the functions, the
// last one first; or leaves all of them, if all were left to the next server. Serve
// must have returned.
func (e *Endpoint) Close() error {
	var errs []error
	if e.left() {
		for _, s := range e.slots {
			errs = append(errs, s.close())
		}
		e.slots = nil
		return errors.Join(errs...)
	}
	if e.started {
		errs = append(errs, e.config.start(e.name, false))
		e.started = false
	}
	for i := len(e.slots) - 1; i >= 0; i-- {
		errs = append(errs, e.slots[i].close(), e.config.remove(e.slots[i].name, e.name))
	}
	e.slots = nil
	return errors.Join(errs...)
}

// left says whether all functions were left to the next server.
func (e *Endpoint) left() bool {
	for _, s := range e.slots {
		if !s.left {
			return false
		}
	}
	return len(e.slots) > 0
}

var (
	background                    = context.Background()
	_          epc.Controller     = (*Slot)(nil)
	_          epc.DoorbellMapper = (*Slot)(nil)
	_          epc.Moving         = (*Slot)(nil)
	_          epc.Recording      = (*Slot)(nil)
)
