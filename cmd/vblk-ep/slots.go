package main

import (
	"context"
	"log/slog"

	"github.com/hashicorp/go-multierror"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/epfuser"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/vfiouser"
)

// slots is where the functions of the disks are put: the i-th disk's into the i-th
// slot.
type slots interface {
	// open is called first, close last.
	open() error
	close() error

	// add makes a slot, and says what room it has for a function: nil if that is
	// always the same.
	add(i int, log *slog.Logger) (slot, *epc.Room, error)

	// check says what would be in the way of add, as far as can be seen.
	check(i int) error
}

func newSlots(o *options, log *slog.Logger) slots {
	if o.slot.real == nil {
		return &sockets{paths: socketPaths(o.slot.slot, o.disks)}
	}
	opts := *o.slot.real
	opts.Log = log
	return &controller{opts: opts, disks: o.disks, names: functionNames(o.disks, "")}
}

// newTrial returns slots that nobody sees.
func newTrial(o *options, log *slog.Logger) slots {
	s := newSlots(o, log)
	switch s := s.(type) {
	case *controller:
		s.trial = true
	case *sockets:
		return &paths{sockets: *s}
	}
	return s
}

// paths are virtual slots that are not taken.
type paths struct{ sockets }

func (p *paths) add(i int, _ *slog.Logger) (slot, *epc.Room, error) {
	return freeSlot(p.paths[i]), nil, p.check(i)
}

// freeSlot is the path of a slot that is not taken.
type freeSlot string

func (f freeSlot) Path() string                              { return string(f) }
func (f freeSlot) Serve(context.Context, epc.Function) error { return nil }

// sockets are virtual slots.
type sockets struct {
	paths []string
	taken []*vfiouser.Slot
}

func (s *sockets) open() error       { return nil }
func (s *sockets) check(i int) error { return vfiouser.CheckPath(s.paths[i]) }

func (s *sockets) add(i int, log *slog.Logger) (slot, *epc.Room, error) {
	v, err := vfiouser.Listen(s.paths[i], vfiouser.Options{Log: log})
	if err != nil {
		return nil, nil, err
	}
	s.taken = append(s.taken, v)
	return v, nil, nil
}

func (s *sockets) close() error {
	var errs *multierror.Error
	for _, v := range s.taken {
		errs = multierror.Append(errs, v.Close())
	}
	return errs.ErrorOrNil()
}

// controller is this machine's endpoint controller.
type controller struct {
	opts     epfuser.Options
	disks    []diskSpec
	names    []string
	trial    bool // nothing is changed that a host sees
	endpoint *epfuser.Endpoint
}

func (c *controller) open() (err error) {
	c.endpoint, err = epfuser.Open(c.opts)
	return err
}

func (c *controller) check(int) error { return nil }

func (c *controller) add(i int, _ *slog.Logger) (slot, *epc.Room, error) {
	if c.endpoint == nil {
		return nil, nil, nil // why was said by open
	}
	queues := c.disks[i].offer.Queues
	if queues == 0 {
		queues = epfbackend.DefaultQueues
	}
	add := c.endpoint.Add
	if c.trial {
		add = c.endpoint.Try
	}
	s, err := add(c.names[i], queues)
	if err != nil {
		return nil, nil, err
	}
	return s, s.Room(), nil
}

func (c *controller) close() error {
	if c.endpoint == nil {
		return nil
	}
	return c.endpoint.Close()
}
