package rc

import (
	"errors"
	"fmt"
	"time"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
	"github.com/vblk-ep/vblk-ep/vring"
)

// patience bounds every wait for the device.
const patience = 30 * time.Second

var (
	// ErrTimeout reports that the device did not do what it must in time.
	ErrTimeout = errors.New("device does not answer")
	// ErrFeatures reports that the device did not accept a choice of features.
	ErrFeatures = errors.New("device refuses the features")
)

// Offered reads the features that the device offers.
func (d *Device) Offered() (f virtio.Features, err error) {
	for sel := range uint32(len(f)) {
		if err := d.Write(virtiopci.DeviceFeatureSelect, 4, uint64(sel)); err != nil {
			return f, err
		}
		v, err := d.Read(virtiopci.DeviceFeature, 4)
		if err != nil {
			return f, err
		}
		f = f.WithDword(sel, uint32(v))
	}
	return f, nil
}

// Accepted returns the features that Negotiate has settled on.
func (d *Device) Accepted() virtio.Features { return d.accepted }

// Reset resets the device and waits for the end of it (§2.4.2).
func (d *Device) Reset() error {
	if err := d.SetStatus(virtio.Reset); err != nil {
		return err
	}
	return d.await(virtiopci.DeviceStatus, 1, 0)
}

// await waits until a register reads v.
func (d *Device) await(off, n int, v uint64) error {
	for start := time.Now(); time.Since(start) < patience; time.Sleep(time.Millisecond) {
		if got, err := d.Read(off, n); err != nil || got == v {
			return err
		}
	}
	return fmt.Errorf("%w: register %#x does not become %d", ErrTimeout, off, v)
}

// Negotiate goes through the handshake from a reset to FEATURES_OK (§3.1.1, steps
// 1 to 6), accepting of what is offered all that is in want. The error wraps
// ErrFeatures if the device refuses.
func (d *Device) Negotiate(want virtio.Features) error {
	if err := d.Reset(); err != nil {
		return err
	}
	offered, err := d.Offered()
	if err != nil {
		return err
	}
	return d.Accept(offered.And(want))
}

// Accept does what is left of Negotiate for a device that was reset, with exactly
// the features given.
func (d *Device) Accept(f virtio.Features) error {
	s := virtio.Acknowledge
	if err := d.SetStatus(s); err != nil {
		return err
	}
	s |= virtio.Driver
	if err := d.SetStatus(s); err != nil {
		return err
	}
	for sel := range uint32(len(f)) {
		if err := d.Write(virtiopci.DriverFeatureSelect, 4, uint64(sel)); err != nil {
			return err
		}
		if err := d.Write(virtiopci.DriverFeature, 4, uint64(f.Dword(sel))); err != nil {
			return err
		}
	}
	s |= virtio.FeaturesOK
	if err := d.SetStatus(s); err != nil {
		return err
	}
	got, err := d.Status()
	if err != nil {
		return err
	}
	if !got.Has(virtio.FeaturesOK) {
		return fmt.Errorf("%w: %v", ErrFeatures, f.Describe(virtioblk.FeatureNames))
	}
	d.accepted = f
	d.live, d.setUp = false, d.setUp[:0]
	return nil
}

// Start enables the queues that were set up and sets DRIVER_OK: the device is live.
func (d *Device) Start() error {
	for _, i := range d.setUp {
		if err := d.Write(virtiopci.QueueSelect, 2, uint64(i)); err != nil {
			return err
		}
		if err := d.Write(virtiopci.QueueEnable, 2, 1); err != nil {
			return err
		}
	}
	d.live, d.setUp = true, d.setUp[:0]
	return d.SetStatus(virtio.Acknowledge | virtio.Driver | virtio.FeaturesOK | virtio.DriverOK)
}

// QueueLimit reads the largest size of queue i.
func (d *Device) QueueLimit(i int) (int, error) {
	if err := d.Write(virtiopci.QueueSelect, 2, uint64(i)); err != nil {
		return 0, err
	}
	v, err := d.Read(virtiopci.QueueSize, 2)
	return int(v), err
}

// EnableQueue tells the device where queue i is and enables it (§4.1.5.1.3): at
// once if the device is live, else in Start, because that is how Linux goes about
// it. vector is virtiopci.NoVector without an interrupt of its own.
func (d *Device) EnableQueue(i int, q vring.Config, vector uint16) error {
	limit, err := d.QueueLimit(i)
	if err != nil {
		return err
	}
	if q.Size > limit {
		return fmt.Errorf("%w: queue %d takes %d descriptors, not %d", ErrDevice, i, limit, q.Size)
	}
	for _, w := range []struct {
		off, n int
		v      uint64
	}{
		{virtiopci.QueueSize, 2, uint64(q.Size)},
		{virtiopci.QueueDesc, 8, q.Desc},
		{virtiopci.QueueDriver, 8, q.Driver},
		{virtiopci.QueueDevice, 8, q.Device},
		{virtiopci.QueueMSIXVector, 2, uint64(vector)},
	} {
		if err := d.Write(w.off, w.n, w.v); err != nil {
			return err
		}
		if got, err := d.Read(w.off, w.n); err != nil || got != w.v {
			return errors.Join(err, fmt.Errorf("%w: register %#x of queue %d reads %#x instead of %#x", ErrDevice, w.off, i, got, w.v))
		}
	}
	if !d.live {
		d.setUp = append(d.setUp, i)
		return nil
	}
	return d.Write(virtiopci.QueueEnable, 2, 1)
}

// ResetQueue resets queue i and waits for the end of it (§2.6.1).
func (d *Device) ResetQueue(i int) error {
	if err := d.Write(virtiopci.QueueSelect, 2, uint64(i)); err != nil {
		return err
	}
	if err := d.Write(virtiopci.QueueReset, 2, 1); err != nil {
		return err
	}
	if err := d.await(virtiopci.QueueReset, 2, 0); err != nil {
		return err
	}
	if v, err := d.Read(virtiopci.QueueEnable, 2); err != nil || v != 0 {
		return errors.Join(err, fmt.Errorf("%w: queue %d is enabled after its reset", ErrDevice, i))
	}
	return nil
}

// notifyAddress returns where queue i is notified (§4.1.4.4).
func (d *Device) notifyAddress(i int) (bar int, off uint64, err error) {
	if err := d.Write(virtiopci.QueueSelect, 2, uint64(i)); err != nil {
		return 0, 0, err
	}
	v, err := d.Read(virtiopci.QueueNotifyOff, 2)
	if err != nil {
		return 0, 0, err
	}
	c := d.caps[virtiopci.NotifyCfg]
	at := v * uint64(c.NotifyMultiplier)
	if at+2 > c.Length {
		return 0, 0, fmt.Errorf("%w: queue %d is notified outside the structure", ErrDevice, i)
	}
	return int(c.BAR), c.Offset + at, nil
}

// Config reads the device configuration.
func (d *Device) Config() (c virtioblk.Config, err error) {
	var b [virtioblk.ConfigLen]byte
	n := min(len(b), int(d.caps[virtiopci.DeviceCfg].Length))
	if err := d.ReadDeviceConfig(0, b[:n]); err != nil {
		return c, err
	}
	c.Decode(b[:])
	return c, nil
}
