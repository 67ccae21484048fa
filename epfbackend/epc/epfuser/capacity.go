package epfuser

import (
	"errors"
	"fmt"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// This file finds out what a controller has for a function, and what it lacks.

// What a controller can lack.
var (
	ErrNoMSIX     = errors.New("the endpoint controller has no MSI-X")
	ErrNoCaps     = errors.New("the endpoint controller cannot show vendor-specific capabilities")
	ErrNoDoorbell = errors.New("the endpoint controller has no such doorbell")
	ErrWindow     = errors.New("the endpoint controller's outbound window is too small")
)

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
