package epfuser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// What a controller can lack.
var (
	ErrNoMSIX     = errors.New("the endpoint controller has no MSI-X")
	ErrNoCaps     = errors.New("the endpoint controller cannot show vendor-specific capabilities")
	ErrNoDoorbell = errors.New("the endpoint controller has no such doorbell")
	ErrWindow     = errors.New("the endpoint controller's outbound window is too small")
)

// patience bounds how long the function may take to come to rest.
const patience = 2 * time.Second

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
	left    bool // it is left to the next server

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

// lacks says what a controller has not that no function can do without.
func lacks(i *epfdev.Info) error {
	var errs []error
	if i.Features&epfdev.HasMSIX == 0 {
		errs = append(errs, fmt.Errorf("%w: stock drivers of functions without an interrupt pin need it; use a controller that has it", ErrNoMSIX))
	}
	if i.Features&epfdev.HasCaps == 0 {
		errs = append(errs, fmt.Errorf("%w: the driver of the host could not find the registers; add the operation to the controller's driver", ErrNoCaps))
	}
	if i.WindowTotal < minWindow {
		errs = append(errs, fmt.Errorf("%w: %d bytes, %d are needed: enlarge the addr_space of the controller in the device tree",
			ErrWindow, i.WindowTotal, minWindow))
	}
	return errors.Join(errs...)
}

// minWindow is for an interrupt and a copy.
const minWindow = 64 << 10

// allocDoorbells gets the doorbells that the options want.
func (s *Slot) allocDoorbells(queues int) error {
	want := s.e.opts.Doorbell
	if want == DoorbellPoll {
		return nil
	}
	b, err := s.dev.AllocDoorbells(queues)
	var why string
	switch {
	case err != nil:
		why = err.Error()
	case b.Kind == epfdev.DoorbellShared && want == DoorbellShared: // whatever is known of it
		s.bells = b
		return nil
	case b.Flags&epfdev.Doorbell16Bit == 0:
		why = "its doorbell does not take writes of 16 bits"
	case b.Kind == epfdev.DoorbellITS && b.Flags&epfdev.DoorbellLinear == 0:
		why = "its doorbells are not told apart by the queue's number"
	case want == DoorbellITS && b.Kind != epfdev.DoorbellITS, want == DoorbellShared && b.Kind != epfdev.DoorbellShared:
		why = "its doorbell is of another kind"
	default:
		s.bells = b
		return nil
	}
	if want != DoorbellAuto {
		return fmt.Errorf("%w: %s: choose doorbell=auto", ErrNoDoorbell, why)
	}
	s.log.Warn("no doorbell: notifications are looked for in memory", "why", why)
	return nil
}

// roomOf says what a controller has, in the port's terms.
func roomOf(i *epfdev.Info, b *epfdev.Doorbells) epc.Room {
	r := epc.Room{
		Granule:   max(uint64(i.BARAlign), 4096),
		SubRanges: i.Features&epfdev.HasSubRange != 0,
	}
	for n, bar := range i.BARs {
		p := &r.BARs[n]
		p.Free = bar.Flags&epfdev.BARFree != 0
		p.Wide = bar.Flags&epfdev.BAR64Only != 0
		if bar.Flags&epfdev.BARFixed != 0 {
			p.Fixed = bar.Fixed
		}
		if bar.Flags&epfdev.BARResizable != 0 {
			p.Least = epfdev.MinResizable
		}
	}
	switch b.Kind {
	case epfdev.DoorbellITS:
		r.Doorbell.Kind = epc.DoorbellEach
	case epfdev.DoorbellShared:
		r.Doorbell.Kind = epc.DoorbellShared
	default:
		return r
	}
	r.Doorbell.Offset, r.Doorbell.Size = uint64(b.RangeOffset), uint64(b.RangeSize)
	if b.Flags&epfdev.DoorbellExposed != 0 {
		r.Doorbell.Exposed, r.Doorbell.BAR, r.Doorbell.Offset = true, int(b.BAR), b.Offset
	}
	return r
}

// Room returns what the controller has for the function.
func (s *Slot) Room() *epc.Room { return &s.room }

// Info returns what the kernel says of the function and its controller.
func (s *Slot) Info() epfdev.Info { return s.info }

// Path names the slot.
func (s *Slot) Path() string { return s.e.name + "/" + s.name }

// program makes the function what its description says.
func (s *Slot) program(d *epc.Description) error {
	id := d.Identity
	err := s.dev.SetHeader(epfdev.Header{
		Vendor: id.Vendor, Device: id.Device,
		SubsysVendor: id.SubsystemVendor, SubsysDevice: id.SubsystemDevice,
		Class: id.Class, Revision: id.Revision, Pin: id.InterruptPin,
	})
	if err != nil {
		return err
	}
	for _, c := range d.Capabilities {
		if err := s.dev.AddCapability(c.Data); err != nil {
			return err
		}
	}
	for n, bar := range d.BARs {
		if bar.Size == 0 {
			continue
		}
		var flags uint32
		if bar.Wide {
			flags = epfdev.BARMem64
		}
		size, err := s.dev.SetBAR(n, flags, ranges(&bar))
		if err != nil {
			return err
		}
		if size != bar.Size {
			s.log.Info("the controller makes a BAR larger", "bar", n, "bytes", size)
		}
	}
	if err := s.dev.SetMSIX(d.MSIX.Vectors, d.MSIX.TableBAR, uint64(d.MSIX.TableOffset)); err != nil {
		return err
	}
	return s.dev.Commit()
}

// ranges returns the parts of a BAR in the order of their offsets.
func ranges(bar *epc.BAR) (r []epfdev.Range) {
	memory, bell := bar.Memory, bar.Doorbell
	for _, m := range memory {
		if bell.Size > 0 && bell.Offset < m.Offset {
			r, bell.Size = append(r, epfdev.Range{Kind: epfdev.RangeDoorbell, Size: bell.Size}), 0
		}
		r = append(r, epfdev.Range{Kind: epfdev.RangeMemory, Size: m.Size})
	}
	if bell.Size > 0 {
		r = append(r, epfdev.Range{Kind: epfdev.RangeDoorbell, Size: bell.Size})
	}
	return r
}

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

// goOn has the function go on with a host that was left for it, and says whether it does.
func (s *Slot) goOn(fn epc.Function) (bool, error) {
	if !s.adopted {
		return false, nil
	}
	lasting, ok := fn.(epc.Lasting)
	if !ok || !s.state.holds(&s.desc) {
		s.log.Warn("the function that was left is another one; the host has to look for it again")
		return false, nil
	}
	if err := s.reach(fn); err != nil {
		return false, err
	}
	gone := s.hostGone()
	if gone {
		s.log.Info("the host's end may have gone while nobody served it", "status", fmt.Sprintf("%#x", s.info.Status),
			"events", s.info.Changes-s.state.seen())
	}
	if err := lasting.Continue(s, gone); err != nil {
		s.log.Warn("the function that was left cannot be taken over; the host has to look for it again", "err", err)
		return false, s.unmap()
	}
	s.state.saw(s.info.Changes)
	s.log.Info("a function is taken over")
	return true, nil
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

// leave is the end of the function's attachment. If it is to go on, and can, nothing is
// reset.
func (s *Slot) leave(keep bool) error {
	if lasting, ok := s.fn.(epc.Lasting); ok && keep && s.e.opts.Keep {
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
// detached, or left to the next server, and flushed. The controller is started with the last slot of its
// endpoint that is served.
func (s *Slot) Serve(ctx context.Context, fn epc.Function) error {
	if err := s.attach(fn); err != nil {
		return err
	}
	err := s.e.attached()
	if err == nil {
		err = s.watch(ctx)
	}
	return errors.Join(err, s.leave(err == nil))
}

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

// transfer reaches host memory.
type transfer struct{ s *Slot }

// ReadHost implements epc.Transfer.
func (t transfer) ReadHost(p []byte, addr uint64) error { return away(t.s.dev.Copy(addr, p, false)) }

// WriteHost implements epc.Transfer.
func (t transfer) WriteHost(p []byte, addr uint64) error { return away(t.s.dev.Copy(addr, p, true)) }

// CopyHost implements epc.Copier.
func (t transfer) CopyHost(list []epc.Copy) error {
	for len(list) > 0 {
		n := min(len(list), epfdev.MaxCopies)
		c := t.s.dev.Copies()
		for _, e := range list[:n] {
			c.Add(e.Addr, e.Local, e.Dir == epc.ToHost)
		}
		if err := c.Do(); err != nil {
			return away(err)
		}
		list = list[n:]
	}
	return nil
}

// away tells that the host cannot be reached in the port's terms.
func away(err error) error {
	if errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("%w: %w", epc.ErrAway, err)
	}
	return err
}
