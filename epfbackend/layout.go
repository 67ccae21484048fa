package epfbackend

import (
	"encoding/binary"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// Where the structures of the device are. Some hosts have this layout built in
// instead of reading the capabilities, so it is an interface: do not change it.
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

// msixBARSize returns the size of a BAR that holds n bytes: a page or more.
func msixBARSize(n int) uint64 {
	size := uint64(structSize)
	for size < uint64(n) {
		size *= 2
	}
	return size
}

func describe(o *Options, vectors, deviceConfigLen int) epc.Description {
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
		MSIX: epc.MSIX{Vectors: vectors, TableBAR: msixTableBAR, PBABAR: msixPBABAR},
	}
	d.BARs[registerBAR].Size = registerSize
	if o.TrapFree {
		d.Identity.InterruptPin = 0 // reading the ISR status cannot release it
		d.BARs[registerBAR].Memory = []epc.Area{{Size: registerSize}}
	}
	d.BARs[msixTableBAR].Size = msixBARSize(vectors * virtiopci.MSIXEntryLen)
	d.BARs[msixPBABAR].Size = msixBARSize((vectors + 7) / 8)
	add := func(c virtiopci.Cap) {
		b := make([]byte, c.Len())
		c.Encode(b, 0)
		d.Capabilities = append(d.Capabilities, epc.Capability{Data: b})
	}
	add(virtiopci.Cap{Type: virtiopci.CommonCfg, BAR: registerBAR, Offset: commonOffset, Length: virtiopci.CommonCfgLen})
	add(virtiopci.Cap{Type: virtiopci.ISRCfg, BAR: registerBAR, Offset: isrOffset, Length: virtiopci.ISRLen})
	add(virtiopci.Cap{Type: virtiopci.DeviceCfg, BAR: registerBAR, Offset: deviceOffset, Length: uint64(deviceConfigLen)})
	add(virtiopci.Cap{
		Type: virtiopci.NotifyCfg, BAR: registerBAR, Offset: notifyOffset,
		Length: uint64(o.Queues * notifyMultiplier), NotifyMultiplier: notifyMultiplier,
	})
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
