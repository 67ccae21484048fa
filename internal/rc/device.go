package rc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// ErrDevice reports that the function is not what a virtio-blk driver expects, or
// breaks the rules.
var ErrDevice = errors.New("device misbehaves")

// Device is an enumerated virtio-blk function. It belongs to one goroutine.
type Device struct {
	bus  Bus
	bars [virtiopci.NumBARs]uint64 // sizes in bytes

	caps   map[virtiopci.CfgType]virtiopci.Cap
	window int // offset of the PCI_CFG capability, 0 for none
	msix   int // offset of the MSI-X capability, 0 for none

	// MSIX is the MSI-X capability; Vectors is 0 without.
	MSIX virtiopci.MSIXCap

	accepted virtio.Features
	live     bool  // DRIVER_OK was set since
	setUp    []int // queues to be enabled then
	irqs     []int // eventfds of the vectors
	intx     int   // eventfd of the pin, -1 while MSI-X is in use
}

// Open enumerates the function: it checks what it is, walks the capability list,
// sizes and places the BARs, and turns memory accesses and bus mastering on. It
// leaves the virtio device as it found it.
func Open(bus Bus) (*Device, error) {
	d := &Device{bus: bus, caps: make(map[virtiopci.CfgType]virtiopci.Cap), intx: -1}
	if err := d.identify(); err != nil {
		return nil, err
	}
	if err := d.walk(); err != nil {
		return nil, err
	}
	if err := d.place(); err != nil {
		return nil, err
	}
	return d, d.check()
}

// Close gives up interrupts. It does not touch the device.
func (d *Device) Close() error { return d.closeInterrupts() }

func (d *Device) identify() error {
	vendor, err := d.config16(virtiopci.ConfigVendorID)
	if err != nil {
		return err
	}
	device, err := d.config16(virtiopci.ConfigDeviceID)
	if err != nil {
		return err
	}
	if vendor != virtiopci.VendorID || device != virtiopci.DeviceIDBase+virtioblk.DeviceType {
		return fmt.Errorf("%w: it is %04x:%04x", ErrDevice, vendor, device)
	}
	return nil
}

// walk reads the capability list. Of several virtio capabilities of one type the
// first is used (virtio 1.4 §4.1.4.1).
func (d *Device) walk() error {
	status, err := d.config16(virtiopci.ConfigStatus)
	if err != nil {
		return err
	}
	if status&virtiopci.StatusCapabilityList == 0 {
		return fmt.Errorf("%w: no capability list", ErrDevice)
	}
	at, err := d.config8(virtiopci.ConfigCapabilities)
	if err != nil {
		return err
	}
	for n := 0; at != 0; n++ {
		if n == virtiopci.ConfigLen/4 || at < virtiopci.ConfigHeaderLen || at%4 != 0 {
			return fmt.Errorf("%w: capability list leads to %#x", ErrDevice, at)
		}
		if at, err = d.capability(int(at)); err != nil {
			return err
		}
	}
	return nil
}

func (d *Device) capability(at int) (next uint8, err error) {
	b := make([]byte, min(virtiopci.SharedMemCapLen, virtiopci.ConfigLen-at))
	if err := d.bus.ReadConfig(at, b); err != nil {
		return 0, err
	}
	switch b[virtiopci.CapVndr] {
	case virtiopci.CapIDMSIX:
		if len(b) < virtiopci.MSIXCapLen {
			return 0, fmt.Errorf("%w: no room for the MSI-X capability at %#x", ErrDevice, at)
		}
		d.msix, d.MSIX = at, virtiopci.DecodeMSIXCap(b)
	case virtiopci.CapIDVendor:
		c, _, err := virtiopci.DecodeCap(b)
		if err != nil {
			return 0, fmt.Errorf("%w: capability at %#x: %w", ErrDevice, at, err)
		}
		if c.Type == virtiopci.PCICfg {
			d.window = at
		}
		if _, ok := d.caps[c.Type]; !ok {
			d.caps[c.Type] = c
		}
	}
	return b[virtiopci.CapNext], nil
}

// place sizes the BARs and gives each an address, as firmware does.
func (d *Device) place() error {
	const (
		base    = 0xe000_0000
		command = virtiopci.CommandMemory | virtiopci.CommandBusMaster
	)
	next := uint32(base)
	for i := range d.bars {
		reg := virtiopci.ConfigBAR0 + 4*i
		if err := d.setConfig32(reg, ^uint32(0)); err != nil {
			return err
		}
		mask, err := d.config32(reg)
		if err != nil {
			return err
		}
		if mask == 0 {
			continue
		}
		if mask&virtiopci.BARFlagsMask != 0 {
			return fmt.Errorf("%w: BAR %d is of a kind it should not be: %#x", ErrDevice, i, mask)
		}
		size := -mask
		next = (next + size - 1) &^ (size - 1)
		if err := d.setConfig32(reg, next); err != nil {
			return err
		}
		if got, err := d.config32(reg); err != nil || got != next {
			return errors.Join(err, fmt.Errorf("%w: BAR %d reads %#x instead of %#x", ErrDevice, i, got, next))
		}
		d.bars[i] = uint64(size)
		next += size
	}
	return d.setConfig16(virtiopci.ConfigCommand, command)
}

// check makes sure that everything a driver needs is there, inside its BAR.
func (d *Device) check() error {
	for t, n := range map[virtiopci.CfgType]uint64{
		virtiopci.CommonCfg: virtiopci.CommonCfgLen,
		virtiopci.NotifyCfg: 2,
		virtiopci.ISRCfg:    virtiopci.ISRLen,
		virtiopci.DeviceCfg: virtioblk.CfgSizeMax,
	} {
		c, ok := d.caps[t]
		if !ok || c.Length < n || c.BAR >= virtiopci.NumBARs || c.Offset+c.Length > d.bars[c.BAR] {
			return fmt.Errorf("%w: structure of type %d is missing or outside its BAR: %+v", ErrDevice, t, c)
		}
	}
	return nil
}

func (d *Device) config8(off int) (uint8, error) {
	var b [1]byte
	err := d.bus.ReadConfig(off, b[:])
	return b[0], err
}

func (d *Device) config16(off int) (uint16, error) {
	var b [2]byte
	err := d.bus.ReadConfig(off, b[:])
	return binary.LittleEndian.Uint16(b[:]), err
}

func (d *Device) config32(off int) (uint32, error) {
	var b [4]byte
	err := d.bus.ReadConfig(off, b[:])
	return binary.LittleEndian.Uint32(b[:]), err
}

func (d *Device) setConfig16(off int, v uint16) error {
	return d.bus.WriteConfig(off, binary.LittleEndian.AppendUint16(nil, v))
}

func (d *Device) setConfig32(off int, v uint32) error {
	return d.bus.WriteConfig(off, binary.LittleEndian.AppendUint32(nil, v))
}
