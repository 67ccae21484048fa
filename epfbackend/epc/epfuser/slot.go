package epfuser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// Slot is one function of an endpoint. To the function it is the controller.
type Slot struct {
	e     *Endpoint
	name  string
	log   *slog.Logger
	dev   *epfdev.Device
	info  epfdev.Info
	bells epfdev.Doorbells // Kind 0: none
	room  epc.Room
	desc  epc.Description
	bars  [6][]byte
	host  *epc.Memory

	state   state
	adopted bool // it was left for us, by a server that ended or died
	left    bool // it is left to the next server: by us, or still by the one before

	fn epc.Function

	mu   sync.Mutex
	owed []uint16 // interrupts that could not be sent
}

// open opens the function's device and finds out what there is room for.
func (s *Slot) open(queues int) error {
	node, err := s.e.config.node(s.name)
	if err != nil {
		return err
	}
	s.dev, err = openNode(node, unix.ENOENT, unix.EBUSY)
	if err != nil {
		return fmt.Errorf("function %s: %w", s.name, err)
	}
	if s.state, err = mapState(s.dev); err != nil {
		return err
	}
	s.state.mark()
	if s.info, err = s.dev.Info(); err != nil {
		return err
	}
	if err := lacks(&s.info); err != nil {
		return fmt.Errorf("%s: %w", s.e.name, err)
	}
	if err := s.allocDoorbells(queues); err != nil {
		return fmt.Errorf("%s: %w", s.e.name, err)
	}
	s.room = roomOf(&s.info, &s.bells)
	return nil
}

// Room returns what the controller has for the function.
func (s *Slot) Room() *epc.Room { return &s.room }

// Info returns what the kernel says of the function and its controller.
func (s *Slot) Info() epfdev.Info { return s.info }

// Path names the slot.
func (s *Slot) Path() string { return s.e.name + "/" + s.name }

// attach gives the function its controller: with the host as it was left, if it was and
// the function can go on, or programmed anew.
func (s *Slot) attach(fn epc.Function) error {
	s.fn, s.desc = fn, fn.Describe()
	// All but the last byte of the address space, which no 64-bit size can hold.
	s.host = epc.NewMemory(transfer{s})
	if err := s.host.Add(epc.Region{Size: math.MaxUint64, Readable: true, Writable: true}); err != nil {
		return err
	}
	goesOn, err := s.goOn(fn)
	if err == nil && !goesOn {
		if err = s.make(); err == nil {
			err = s.reach(fn)
		}
		if err == nil {
			s.info, err = s.dev.Info() // no host has seen the function yet: all until now is no news to it
		}
		if err == nil {
			fn.Attach(s)
			s.state.saw(s.info.Changes)
			s.state.made(&s.desc)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.Path(), err)
	}
	return nil
}

// reach gets at what the function needs of the device: memory of the BARs, doorbells.
func (s *Slot) reach(fn epc.Function) error {
	for n, bar := range s.desc.BARs {
		if len(bar.Memory) == 0 {
			continue
		}
		var err error
		if s.bars[n], err = s.dev.MapBAR(n, int(bar.Size)); err != nil {
			return err
		}
	}
	return s.connect(fn)
}

// unmap gives back the memory of the BARs.
func (s *Slot) unmap() error {
	var errs []error
	for n, b := range s.bars {
		if b != nil {
			errs = append(errs, unix.Munmap(b))
			s.bars[n] = nil
		}
	}
	return errors.Join(errs...)
}

// make programs the function. One that was left for us is forgotten first, which the host
// sees as the end of the link.
func (s *Slot) make() error {
	if s.adopted {
		s.left = false
		count := s.bells.Count
		if err := s.e.config.start(s.e.name, false); err != nil {
			return err
		}
		if err := s.dev.Revoke(); err != nil {
			return err
		}
		s.state.mark()
		if count > 0 {
			if _, err := s.dev.AllocDoorbells(int(count)); err != nil {
				return err
			}
		}
	}
	return s.program(&s.desc)
}

// connect has the doorbells ring those of the function.
func (s *Slot) connect(fn epc.Function) error {
	rung, ok := fn.(epc.Rung)
	if !ok || s.room.Doorbell.Kind == epc.NoDoorbell {
		return nil
	}
	for i, fd := range rung.Doorbells() {
		if err := s.dev.SetEventfd(i, fd); err != nil {
			return err
		}
	}
	return nil
}

// close gives back what the slot has of the kernel. The function must be detached.
func (s *Slot) close() error {
	if s.dev == nil {
		return nil
	}
	errs := []error{s.unmap()}
	if s.state != nil {
		errs = append(errs, unix.Munmap(s.state))
		s.state = nil
	}
	errs = append(errs, s.dev.Close())
	s.dev = nil
	return errors.Join(errs...)
}

// Serve programs fn and runs it until ctx ends; then it returns nil once it is
// detached, or left to the next server, and flushed. The controller is started with
// the last slot of its endpoint that is served. When a function that was left for us
// cannot be reached, it stays as it is, and then all slots leave theirs.
func (s *Slot) Serve(ctx context.Context, fn epc.Function) error {
	if err := s.attach(fn); err != nil {
		if s.left {
			s.e.keep.Store(true)
			err = fmt.Errorf("%w: all functions are left to the next server: start it again", err)
		}
		return err
	}
	err := s.e.attached()
	if err == nil {
		err = s.watch(ctx)
	}
	return errors.Join(err, s.leave(err == nil))
}

var _ epc.Late = (*Slot)(nil)

// Memory implements epc.Controller.
func (s *Slot) Memory() *epc.Memory { return s.host }

// BARMemory implements epc.Controller.
func (s *Slot) BARMemory(bar int) []byte { return s.bars[bar] }

// Record implements epc.Recording.
func (s *Slot) Record() []byte { return s.state[offRecord:] }

// MSIXEnabled implements epc.Controller. There is no interrupt pin, so nothing else
// could be used; a vector that is not set up is dropped by the kernel.
func (s *Slot) MSIXEnabled() bool { return true }

// RaiseMSIX implements epc.Controller. What cannot be sent because the host is not to be
// reached is sent when it lets the function be a bus master: the kernel tells when it does,
// but not when it no longer does.
func (s *Slot) RaiseMSIX(vector uint16) error {
	if err := s.raise(vector); !errors.Is(err, unix.ENETDOWN) {
		return err
	}
	s.mu.Lock()
	if !slices.Contains(s.owed, vector) {
		s.owed = append(s.owed, vector)
	}
	s.mu.Unlock()
	if err := s.raise(vector); !errors.Is(err, unix.ENETDOWN) { // it may have come back since
		return err
	}
	return nil
}

// raise raises a vector. What the host has not enabled, or not set up, is dropped.
func (s *Slot) raise(vector uint16) error {
	err := s.dev.RaiseMSIX(int(vector))
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

// SetINTx implements epc.Controller: there is no pin.
func (s *Slot) SetINTx(bool) error { return nil }

// MapDoorbell implements epc.DoorbellMapper.
func (s *Slot) MapDoorbell() bool {
	err := s.dev.MapRanges()
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		s.log.Warn("the doorbell cannot be mapped: notifications are looked for in memory", "err", err)
	}
	return err == nil
}
