package rc

import (
	"encoding/binary"
	"fmt"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// Read reads n bytes (1, 2, 4 or 8) of the common configuration structure. Wide
// registers are read in halves, as §4.1.3.1 wants it.
func (d *Device) Read(off, n int) (uint64, error) {
	var b [8]byte
	c := d.caps[virtiopci.CommonCfg]
	for at := 0; at < n; at += 4 {
		if err := d.bus.ReadBAR(int(c.BAR), c.Offset+uint64(off+at), b[at:min(at+4, n)]); err != nil {
			return 0, err
		}
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// Write writes n bytes of the common configuration structure, as Read reads them.
func (d *Device) Write(off, n int, v uint64) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	c := d.caps[virtiopci.CommonCfg]
	for at := 0; at < n; at += 4 {
		if err := d.bus.WriteBAR(int(c.BAR), c.Offset+uint64(off+at), b[at:min(at+4, n)]); err != nil {
			return err
		}
	}
	return nil
}

// Status reads the device status.
func (d *Device) Status() (virtio.Status, error) {
	v, err := d.Read(virtiopci.DeviceStatus, 1)
	return virtio.Status(v), err
}

// SetStatus writes the device status.
func (d *Device) SetStatus(s virtio.Status) error {
	return d.Write(virtiopci.DeviceStatus, 1, uint64(s))
}

// ISR reads, and so clears, the ISR status.
func (d *Device) ISR() (uint8, error) {
	var b [virtiopci.ISRLen]byte
	c := d.caps[virtiopci.ISRCfg]
	err := d.bus.ReadBAR(int(c.BAR), c.Offset, b[:])
	return b[0], err
}

// ReadDeviceConfig reads len(p) bytes at off of the device configuration. A
// change meanwhile makes it read again (§4.1.4.3.2).
func (d *Device) ReadDeviceConfig(off int, p []byte) error {
	const tries = 100
	c := d.caps[virtiopci.DeviceCfg]
	for range tries {
		before, err := d.Read(virtiopci.ConfigGeneration, 1)
		if err != nil {
			return err
		}
		if err := d.bus.ReadBAR(int(c.BAR), c.Offset+uint64(off), p); err != nil {
			return err
		}
		after, err := d.Read(virtiopci.ConfigGeneration, 1)
		if err != nil || before == after {
			return err
		}
	}
	return fmt.Errorf("%w: the configuration does not stop changing", ErrDevice)
}

// WriteDeviceConfig writes p to the device configuration.
func (d *Device) WriteDeviceConfig(off int, p []byte) error {
	c := d.caps[virtiopci.DeviceCfg]
	return d.bus.WriteBAR(int(c.BAR), c.Offset+uint64(off), p)
}
