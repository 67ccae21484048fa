package epfuser

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// watch tells the function what happens to its link, until ctx ends.
func (s *Slot) watch(ctx context.Context) error {
	end, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(end)
	stop := context.AfterFunc(ctx, func() { _, _ = unix.Write(end, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	defer stop()
	fds := []unix.PollFd{{Fd: int32(s.dev.FD()), Events: unix.POLLIN}, {Fd: int32(end), Events: unix.POLLIN}}
	var events [16]epfdev.Event
	var next uint64
	for ctx.Err() == nil {
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for events: %w", err)
		}
		if fds[0].Revents&^unix.POLLIN != 0 {
			return fmt.Errorf("%s: the function was unbound by someone else", s.Path())
		}
		n, err := s.dev.Events(events[:])
		if err != nil {
			return err
		}
		for _, e := range events[:n] {
			lost := next != 0 && e.Sequence != next
			next = e.Sequence + 1
			s.handle(e, lost)
		}
	}
	return nil
}

// handle does what an event asks for. lost says that there were others before it,
// which may have been the end of a link.
func (s *Slot) handle(e epfdev.Event, lost bool) {
	s.log.Info("event", "type", e.Type, "status", fmt.Sprintf("%#x", e.Status))
	if lost || e.Type == epfdev.EventLinkDown || e.Type == epfdev.EventDeinit {
		s.reset()
	}
	s.hold(s.masterOff(e.Status) && e.Status&epfdev.LinkUp != 0)
}

// reset brings the function into its state at reset: the host's end is gone.
func (s *Slot) reset() {
	ctx, cancel := context.WithTimeout(background, patience)
	defer cancel()
	if err := s.fn.Reset(ctx); err != nil {
		s.log.Warn("the link went down", "err", err)
	}
}

// hold makes the function leave host memory alone, as long as the host does not let
// it be a bus master.
func (s *Slot) hold(on bool) {
	switch {
	case on && !s.paused:
		s.paused = true
		ctx, cancel := context.WithTimeout(background, patience)
		defer cancel()
		if err := s.fn.Pause(ctx); err != nil {
			s.log.Warn("the host has turned bus mastering off", "err", err)
		}
	case !on && s.paused:
		s.paused = false
		s.fn.Resume()
	}
}
