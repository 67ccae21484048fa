package rc

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// VFIOUser is the Bus of a function behind a vfio-user socket: what a VMM does
// for its guest. BAR memory that the server lends is mapped, and accesses to it
// send no message.
type VFIOUser struct {
	*vfiouser.Client
	vectors int // of MSI-X
	areas   []barArea
}

// barArea is a part of a BAR that is memory of ours.
type barArea struct {
	bar     int
	off     uint64
	mapping *shm.Mapping
	window  shm.Window
}

var _ Bus = (*VFIOUser)(nil)

// DialVFIOUser connects to the socket at path.
func DialVFIOUser(ctx context.Context, path string, o vfiouser.ClientOptions) (*VFIOUser, error) {
	c, err := vfiouser.Dial(ctx, path, o)
	if err != nil {
		return nil, err
	}
	irq, err := c.IRQ(vfiouser.IRQMSIX)
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	v := &VFIOUser{Client: c, vectors: int(irq.Count)}
	for bar := range virtiopci.NumBARs {
		if err := v.mapBAR(bar); err != nil {
			return nil, errors.Join(fmt.Errorf("BAR %d: %w", bar, err), v.Close())
		}
	}
	return v, nil
}

// mapBAR maps what the server lends of a BAR.
func (v *VFIOUser) mapBAR(bar int) error {
	view, err := v.Region(bar)
	if err != nil || view.FD < 0 {
		return err
	}
	defer unix.Close(view.FD)
	for i, a := range view.Areas {
		m, err := view.MapArea(i)
		if err != nil {
			return err
		}
		v.areas = append(v.areas, barArea{bar, a.Offset, m, shm.Of(m.Bytes())})
	}
	return nil
}

// Close ends the connection and gives BAR memory back.
func (v *VFIOUser) Close() error {
	errs := []error{v.Client.Close()}
	for _, a := range v.areas {
		errs = append(errs, a.mapping.Close())
	}
	v.areas = nil
	return errors.Join(errs...)
}

// area finds the memory of n bytes of a BAR, nil if they are reached by message.
func (v *VFIOUser) area(bar int, off uint64, n int) (a *barArea, at int) {
	for i := range v.areas {
		a := &v.areas[i]
		if a.bar == bar && off >= a.off && off+uint64(n) <= a.off+uint64(a.window.Len()) {
			return a, int(off - a.off)
		}
	}
	return nil, 0
}

// ReadConfig implements Registers.
func (v *VFIOUser) ReadConfig(off int, p []byte) error {
	return v.ReadRegion(vfiouser.RegionConfig, uint64(off), p)
}

// WriteConfig implements Registers.
func (v *VFIOUser) WriteConfig(off int, p []byte) error {
	return v.WriteRegion(vfiouser.RegionConfig, uint64(off), p)
}

// ReadBAR implements Registers.
func (v *VFIOUser) ReadBAR(bar int, off uint64, p []byte) error {
	if a, at := v.area(bar, off, len(p)); a != nil {
		a.window.Read(p, at)
		return nil
	}
	return v.ReadRegion(bar, off, p)
}

// WriteBAR implements Registers. Like every write to memory on PCIe it is posted:
// it is done before a later access, and its failure is not told.
func (v *VFIOUser) WriteBAR(bar int, off uint64, p []byte) error {
	if a, at := v.area(bar, off, len(p)); a != nil {
		a.window.Write(at, p)
		return nil
	}
	return v.PostRegion(bar, off, p)
}

// Map implements Bus.
func (v *VFIOUser) Map(r Region) error {
	m := vfiouser.DMAMap{Flags: vfiouser.DMAMapRead, Addr: r.Addr, Size: r.Size, Offset: uint64(r.Offset)}
	if !r.ReadOnly {
		m.Flags |= vfiouser.DMAMapWrite
	}
	return v.MapDMA(m, r.FD)
}

// Unmap implements Bus.
func (v *VFIOUser) Unmap(addr, size uint64) error {
	return v.UnmapDMA(vfiouser.DMAUnmap{Addr: addr, Size: size})
}

// Vectors implements Bus.
func (v *VFIOUser) Vectors(fds []int) error {
	if len(fds) > v.vectors {
		return fmt.Errorf("%w: it has %d vectors, not %d", ErrDevice, v.vectors, len(fds))
	}
	if err := v.trigger(vfiouser.IRQMSIX, 0, nil); err != nil {
		return err
	}
	for i, fd := range fds {
		if fd < 0 {
			continue
		}
		if err := v.trigger(vfiouser.IRQMSIX, i, []int{fd}); err != nil {
			return err
		}
	}
	return nil
}

// INTx implements Bus.
func (v *VFIOUser) INTx(fd int) error {
	if fd < 0 {
		return v.trigger(vfiouser.IRQINTx, 0, nil)
	}
	return v.trigger(vfiouser.IRQINTx, 0, []int{fd})
}

// EndINTx implements Bus.
func (v *VFIOUser) EndINTx() error {
	return v.SetIRQs(vfiouser.IRQSet{
		Flags: vfiouser.IRQDataNone | vfiouser.IRQActionUnmask, Index: vfiouser.IRQINTx, Count: 1,
	})
}

// trigger sets eventfds of an index from start on, or takes all away.
func (v *VFIOUser) trigger(index, start int, fds []int) error {
	set := vfiouser.IRQSet{Flags: vfiouser.IRQActionTrigger | vfiouser.IRQDataNone, Index: uint32(index), Start: uint32(start)}
	if fds != nil {
		set.Flags = vfiouser.IRQActionTrigger | vfiouser.IRQDataEventfd
		set.Count, set.FDs = uint32(len(fds)), fds
	}
	return v.SetIRQs(set)
}

// MemoryHost answers a server's DMA messages from guest memory, for regions that
// are mapped without a descriptor.
type MemoryHost struct{ *vringtest.Memory }

// ReadDMA implements vfiouser.Host.
func (m MemoryHost) ReadDMA(p []byte, addr uint64) error { return m.ReadAt(p, addr) }

// WriteDMA implements vfiouser.Host.
func (m MemoryHost) WriteDMA(p []byte, addr uint64) error { return m.WriteAt(p, addr) }
