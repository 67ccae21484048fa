package epfuser

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/epfdev"
	"github.com/vblk-ep/vblk-ep/internal/eventfd"
)

// watch tells the function what happens to its link, until ctx ends.
func (s *Slot) watch(ctx context.Context) error {
	end, err := eventfd.New()
	if err != nil {
		return err
	}
	defer unix.Close(end)
	stop := context.AfterFunc(ctx, func() { _ = eventfd.Ring(end) })
	defer stop()
	fds := []unix.PollFd{{Fd: int32(s.dev.FD()), Events: unix.POLLIN}, {Fd: int32(end), Events: unix.POLLIN}}
	var events [16]epfdev.Event
	for ctx.Err() == nil {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for events: %w", err)
		}
		if fds[0].Revents&^unix.POLLIN != 0 {
			return fmt.Errorf("%s: the function was unbound by someone else: start the server again", s.Path())
		}
		n, err := s.dev.Events(events[:])
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			s.handle(e)
		}
	}
	return nil
}

// handle does what an event asks for, unless it is of before the function was attached,
// which has accounted for it. If there were others before it that were lost, they may have
// been the end of a link.
func (s *Slot) handle(e epfdev.Event) {
	seen := s.state.seen()
	if e.Sequence <= seen {
		return
	}
	s.log.Info("event", "type", e.Type, "status", fmt.Sprintf("%#x", e.Status))
	if lost := e.Sequence != seen+1; lost || e.Type == epfdev.EventLinkDown || e.Type == epfdev.EventDeinit {
		s.reset()
	}
	s.state.saw(e.Sequence)
	if e.Status&epfdev.LinkUp != 0 && !s.masterOff(e.Status) {
		s.raiseOwed()
	}
}

// Settled implements epc.Late.
func (s *Slot) Settled() bool {
	i, err := s.dev.Info()
	return err == nil && i.Changes == s.state.seen()
}

// reset brings the function into its state at reset: the host's end is gone. It may be back
// already, or another one be there. While the link is down nobody can write to the BARs.
func (s *Slot) reset() {
	ctx, cancel := context.WithTimeout(background, patience)
	defer cancel()
	end := s.fn.HostGone
	if i, err := s.dev.Info(); err == nil && i.Status&epfdev.LinkUp == 0 {
		end = s.fn.Reset
	}
	if err := end(ctx); err != nil {
		s.log.Warn("the link went down", "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed = nil // it was the host's that is gone
}

// raiseOwed sends the interrupts that could not be sent, most likely because the host did
// not let the function be a bus master. Some may have been sent since, which does no harm.
func (s *Slot) raiseOwed() {
	s.mu.Lock()
	owed := s.owed
	s.owed = nil
	s.mu.Unlock()
	for _, vector := range owed {
		if err := s.RaiseMSIX(vector); err != nil {
			s.log.Warn("interrupt not delivered", "vector", vector, "err", err)
		}
	}
}
