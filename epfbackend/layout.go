package epfbackend

import (
	"encoding/binary"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// Where the structures of the device are in a virtual slot. Some hosts have this
// layout built in instead of reading the capabilities, so it is an interface: do not
// change it.
const (
	msixTableBAR = 1
	msixPBABAR   = 2
	registerBAR  = 4

	commonOffset = 0x0000
	isrOffset    = 0x1000
	deviceOffset = 0x2000
	notifyOffset = 0x3000
	registerSize = 0x4000
	structSize   = 0x1000 // each structure has a page of its own

	notifyMultiplier = 4
	maxQueues        = structSize / notifyMultiplier
)

// place is where something is in the BARs.
type place struct {
	bar int
	off int
}

// layout is where the structures of a device are, and what their BARs are like.
type layout struct {
	bars                        [virtiopci.NumBARs]epc.BAR
	common, isr, device, notify place
	notifyLen, multiplier       int
	msix                        epc.MSIX

	// rung says that the controller has a doorbell at notify. If watched is set
	// there is memory, too, that takes notifications.
	rung, watched bool
}

// newLayout returns the layout of a function of o, complete options.
func newLayout(o *Options) (layout, error) {
	vectors := o.Queues + 1 // one for configuration changes
	if o.Room != nil {
		return fit(o.Room, o.Queues, vectors)
	}
	return fixedLayout(o, vectors), nil
}

func fixedLayout(o *Options, vectors int) layout {
	l := layout{
		common: place{registerBAR, commonOffset}, isr: place{registerBAR, isrOffset},
		device: place{registerBAR, deviceOffset}, notify: place{registerBAR, notifyOffset},
		notifyLen: o.Queues * notifyMultiplier, multiplier: notifyMultiplier,
		msix:    epc.MSIX{Vectors: vectors, TableBAR: msixTableBAR, PBABAR: msixPBABAR},
		watched: o.TrapFree,
	}
	l.bars[registerBAR].Size = registerSize
	if o.TrapFree {
		l.bars[registerBAR].Memory = []epc.Area{{Size: registerSize}}
	}
	l.bars[msixTableBAR].Size = powerOfTwo(structSize, virtiopci.MSIXTableLen(vectors))
	l.bars[msixPBABAR].Size = powerOfTwo(structSize, virtiopci.MSIXPBALen(vectors))
	return l
}

// powerOfTwo returns the smallest power of two that is at least each of a and n; a
// is one itself.
func powerOfTwo(a uint64, n int) uint64 {
	for a < uint64(n) {
		a *= 2
	}
	return a
}

// describe returns the function's face, with the structures where l has them.
func (l *layout) describe(o *Options) epc.Description {
	d := epc.Description{
		Identity: epc.Identity{
			Vendor:          virtiopci.VendorID,
			Device:          virtiopci.DeviceIDBase + deviceType,
			SubsystemVendor: o.SubsystemVendor,
			SubsystemDevice: o.SubsystemDevice,
			Revision:        virtiopci.Revision,
			Class:           classOtherStorage,
			InterruptPin:    1,
		},
		BARs: l.bars,
		MSIX: l.msix,
	}
	if o.TrapFree {
		d.Identity.InterruptPin = 0 // reading the ISR status cannot release it
	}
	add := func(t virtiopci.CfgType, at place, length, multiplier int) {
		c := virtiopci.Cap{
			Type: t, BAR: uint8(at.bar), Offset: uint64(at.off), Length: uint64(length),
			NotifyMultiplier: uint32(multiplier),
		}
		b := make([]byte, c.Len())
		c.Encode(b, 0)
		d.Capabilities = append(d.Capabilities, epc.Capability{Data: b})
	}
	add(virtiopci.CommonCfg, l.common, virtiopci.CommonCfgLen, 0)
	add(virtiopci.ISRCfg, l.isr, virtiopci.ISRLen, 0)
	add(virtiopci.DeviceCfg, l.device, virtioblk.ConfigLen, 0)
	add(virtiopci.NotifyCfg, l.notify, l.notifyLen, l.multiplier)
	if !o.TrapFree {
		d.Capabilities = append(d.Capabilities, configAccess())
	}
	return d
}

// configAccess is the capability through which a host without memory space
// reaches the registers (virtio 1.4 §4.1.4.9): it chooses BAR, offset and length.
func configAccess() epc.Capability {
	c := virtiopci.Cap{Type: virtiopci.PCICfg}
	data := make([]byte, c.Len())
	c.Encode(data, 0)
	writable := make([]byte, len(data))
	writable[virtiopci.CapBAR] = 0xff
	for i := virtiopci.CapOffset; i < virtiopci.CapPCICfgData; i++ {
		writable[i] = 0xff
	}
	return epc.Capability{Data: data, Writable: writable, Window: func(data []byte) (bar int, off uint64, n int) {
		le := binary.LittleEndian
		return int(data[virtiopci.CapBAR]), uint64(le.Uint32(data[virtiopci.CapOffset:])),
			int(le.Uint32(data[virtiopci.CapRegionLength:]))
	}}
}
