package epfuser

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// This file leaves a function to the next server, and takes over one that was left.

// patience bounds how long the function may take to come to rest.
const patience = 2 * time.Second

var errOther = errors.New("it is programmed as another one")

// goesOn says whether a function that was left can be served on as it is, with that
// many queues.
func (s *Slot) goesOn(queues int) bool {
	var err error
	if s.info, err = s.dev.Info(); err != nil || !s.state.holds(nil) {
		return false
	}
	const made = epfdev.Committed | epfdev.Initialized
	if s.info.Status&made != made {
		return false
	}
	b, err := s.dev.AllocDoorbells(0)
	if err != nil {
		return false
	}
	switch want := s.e.opts.Doorbell; {
	case b.Count == 0:
		b.Kind = 0
		if want != DoorbellAuto && want != DoorbellPoll {
			return false
		}
	case int(b.Count) != queues || want == DoorbellPoll ||
		want == DoorbellITS && b.Kind != epfdev.DoorbellITS || want == DoorbellShared && b.Kind != epfdev.DoorbellShared:
		return false
	}
	s.bells, s.room = b, roomOf(&s.info, &b)
	return true
}

// Adopted says whether the slot's function was left by another server.
func (s *Slot) Adopted() bool { return s.adopted }

// CanGoOn returns why fn cannot go on with the host of a function that was left, nil if it
// can.
func (s *Slot) CanGoOn(fn epc.Function) error {
	lasting, ok := fn.(epc.Lasting)
	if d := fn.Describe(); !ok || !s.state.holds(&d) {
		return errOther
	}
	return lasting.CanContinue(s)
}

// hostGone says whether the host of a function that was left may not be the one that used
// it: something has happened to the link since, or the host cannot be reached.
func (s *Slot) hostGone() bool {
	return s.info.Changes != s.state.seen() || s.info.Status&epfdev.LinkUp == 0 || s.masterOff(s.info.Status)
}

// masterOff says whether a status tells that the host does not let us reach its
// memory.
func (s *Slot) masterOff(status uint32) bool {
	const known = epfdev.BusMaster | epfdev.BusMasterKnown
	return status&known == epfdev.BusMasterKnown
}

// goOn has the function go on with a host that was left for it, and says whether it does.
func (s *Slot) goOn(fn epc.Function) (bool, error) {
	if !s.adopted {
		return false, nil
	}
	if err := s.CanGoOn(fn); err != nil {
		s.log.Warn("the function that was left cannot be taken over; the host has to look for it again", "err", err)
		return false, nil
	}
	if err := s.reach(fn); err != nil {
		return false, err
	}
	var err error
	if s.info, err = s.dev.Info(); err != nil { // much may have happened since it was opened
		return false, err
	}
	gone := s.hostGone()
	if gone {
		s.log.Info("the host's end may have gone while nobody served it", "status", fmt.Sprintf("%#x", s.info.Status),
			"events", s.info.Changes-s.state.seen())
	}
	if err := fn.(epc.Lasting).Continue(s, gone); err != nil {
		return false, err
	}
	s.left = false
	s.state.saw(s.info.Changes)
	s.log.Info("a function is taken over")
	return true, nil
}

// leave is the end of the function's attachment. If it is to go on, and can, nothing is
// reset.
func (s *Slot) leave(keep bool) error {
	if lasting, ok := s.fn.(epc.Lasting); ok && keep && s.e.keep.Load() {
		ctx, cancel := context.WithTimeout(background, patience)
		defer cancel()
		err := lasting.Suspend(ctx)
		if s.left = err == nil; s.left {
			return nil
		}
		s.log.Warn("the function cannot be left to the next server", "err", err)
	}
	return s.fn.Detach()
}
