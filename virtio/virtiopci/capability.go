package virtiopci

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// CfgType says what a vendor capability points to (§4.1.4).
type CfgType uint8

// Types of virtio capabilities.
const (
	CommonCfg    CfgType = 1 // common configuration
	NotifyCfg    CfgType = 2 // notifications
	ISRCfg       CfgType = 3 // ISR status
	DeviceCfg    CfgType = 4 // device configuration space
	PCICfg       CfgType = 5 // window into BARs through configuration space
	SharedMemCfg CfgType = 8 // shared memory region
	VendorCfg    CfgType = 9 // vendor data
)

// Lengths of capabilities, in bytes.
const (
	CapLen          = 16 // common, ISR, device
	NotifyCapLen    = 20
	PCICfgCapLen    = 20
	SharedMemCapLen = 24
)

// Offsets in a capability (struct virtio_pci_cap). The last three belong to
// particular types.
const (
	CapVndr             = 0x00 // u8, CapIDVendor
	CapNext             = 0x01 // u8, offset of the next capability, 0 for the last
	CapLength           = 0x02 // u8, length of this capability
	CapCfgType          = 0x03 // u8, CfgType
	CapBAR              = 0x04 // u8, 0 to 5
	CapID               = 0x05 // u8, tells several of one type apart
	CapOffset           = 0x08 // u32, offset in the BAR
	CapRegionLength     = 0x0c // u32, length of the structure there
	CapNotifyMultiplier = 0x10 // u32, NotifyCfg: notify_off_multiplier
	CapPCICfgData       = 0x10 // 4 bytes, PCICfg: the window
	CapOffsetHigh       = 0x10 // u32, SharedMemCfg: upper half of the offset
	CapLengthHigh       = 0x14 // u32, SharedMemCfg: upper half of the length
)

// Cap is one virtio capability (§4.1.4).
type Cap struct {
	Type   CfgType
	BAR    uint8
	ID     uint8
	Offset uint64 // in the BAR; only SharedMemCfg has more than 32 bits
	Length uint64 // of the structure there; only SharedMemCfg has more than 32 bits

	// NotifyMultiplier is the distance in bytes between the notification
	// addresses of queues whose queue_notify_off differ by one (§4.1.4.4);
	// NotifyCfg only. 0 makes all queues share one address.
	NotifyMultiplier uint32
}

// Len returns the length of the capability in configuration space.
func (c Cap) Len() int {
	switch c.Type {
	case NotifyCfg:
		return NotifyCapLen
	case PCICfg:
		return PCICfgCapLen
	case SharedMemCfg:
		return SharedMemCapLen
	}
	return CapLen
}

// Encode writes the capability to b, which must hold Len bytes, with next as the
// offset of the capability after it. The window of a PCICfg capability is zeroed.
func (c Cap) Encode(b []byte, next uint8) {
	b = b[:c.Len()]
	clear(b)
	b[CapVndr] = CapIDVendor
	b[CapNext] = next
	b[CapLength] = uint8(len(b))
	b[CapCfgType] = uint8(c.Type)
	b[CapBAR] = c.BAR
	b[CapID] = c.ID
	binary.LittleEndian.PutUint32(b[CapOffset:], uint32(c.Offset))
	binary.LittleEndian.PutUint32(b[CapRegionLength:], uint32(c.Length))
	switch c.Type {
	case NotifyCfg:
		binary.LittleEndian.PutUint32(b[CapNotifyMultiplier:], c.NotifyMultiplier)
	case SharedMemCfg:
		binary.LittleEndian.PutUint32(b[CapOffsetHigh:], uint32(c.Offset>>32))
		binary.LittleEndian.PutUint32(b[CapLengthHigh:], uint32(c.Length>>32))
	}
}

// ErrCap is the cause of every error of DecodeCap.
var ErrCap = errors.New("malformed virtio capability")

// DecodeCap reads the capability at the start of b, which may be longer. It
// returns the offset of the next one as well.
func DecodeCap(b []byte) (c Cap, next uint8, err error) {
	if len(b) < CapLen || b[CapVndr] != CapIDVendor {
		return Cap{}, 0, fmt.Errorf("%w: not a vendor capability of %d bytes", ErrCap, CapLen)
	}
	c = Cap{
		Type:   CfgType(b[CapCfgType]),
		BAR:    b[CapBAR],
		ID:     b[CapID],
		Offset: uint64(binary.LittleEndian.Uint32(b[CapOffset:])),
		Length: uint64(binary.LittleEndian.Uint32(b[CapRegionLength:])),
	}
	if n := c.Len(); int(b[CapLength]) < n || len(b) < n {
		return Cap{}, 0, fmt.Errorf("%w: type %d needs %d bytes, has %d", ErrCap, c.Type, n, min(int(b[CapLength]), len(b)))
	}
	switch c.Type {
	case NotifyCfg:
		c.NotifyMultiplier = binary.LittleEndian.Uint32(b[CapNotifyMultiplier:])
	case SharedMemCfg:
		c.Offset |= uint64(binary.LittleEndian.Uint32(b[CapOffsetHigh:])) << 32
		c.Length |= uint64(binary.LittleEndian.Uint32(b[CapLengthHigh:])) << 32
	}
	return c, b[CapNext], nil
}
