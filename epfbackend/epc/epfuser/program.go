package epfuser

import (
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

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
