package virtiopci

import "encoding/binary"

// Layout of the MSI-X capability (PCIe 7.7.2), in bytes.
const (
	MSIXCapNext    = 0x01 // u8
	MSIXCapControl = 0x02 // u16
	MSIXCapTable   = 0x04 // u32: offset, with the BAR in the lowest three bits
	MSIXCapPBA     = 0x08 // u32: the same for the pending bits
	MSIXCapLen     = 12
)

// Bits of the MSI-X message control word.
const (
	MSIXSizeMask     = 0x07ff  // number of vectors minus one
	MSIXFunctionMask = 1 << 14 // all vectors are masked
	MSIXEnable       = 1 << 15 // MSI-X is on, INTx is off

	// MSIXMaxVectors is how many vectors a table can have.
	MSIXMaxVectors = 2048
)

// MSIXCap is an MSI-X capability.
type MSIXCap struct {
	Vectors     int    // 1 to MSIXMaxVectors
	TableBAR    uint8  // 0 to 5
	TableOffset uint32 // in that BAR, a multiple of 8
	PBABAR      uint8  // 0 to 5
	PBAOffset   uint32 // in that BAR, a multiple of 8
}

// Encode writes the capability, disabled and unmasked, to b, which must hold
// MSIXCapLen bytes, with next as the offset of the capability after it.
func (c MSIXCap) Encode(b []byte, next uint8) {
	b = b[:MSIXCapLen]
	b[0] = CapIDMSIX
	b[MSIXCapNext] = next
	binary.LittleEndian.PutUint16(b[MSIXCapControl:], uint16(c.Vectors-1)&MSIXSizeMask)
	binary.LittleEndian.PutUint32(b[MSIXCapTable:], c.TableOffset&^7|uint32(c.TableBAR&7))
	binary.LittleEndian.PutUint32(b[MSIXCapPBA:], c.PBAOffset&^7|uint32(c.PBABAR&7))
}

// DecodeMSIXCap reads the capability at the start of b, which must hold
// MSIXCapLen bytes.
func DecodeMSIXCap(b []byte) MSIXCap {
	b = b[:MSIXCapLen]
	table := binary.LittleEndian.Uint32(b[MSIXCapTable:])
	pba := binary.LittleEndian.Uint32(b[MSIXCapPBA:])
	return MSIXCap{
		Vectors:     int(binary.LittleEndian.Uint16(b[MSIXCapControl:])&MSIXSizeMask) + 1,
		TableBAR:    uint8(table & 7),
		TableOffset: table &^ 7,
		PBABAR:      uint8(pba & 7),
		PBAOffset:   pba &^ 7,
	}
}

// Layout of an MSI-X table entry (PCIe 7.7.2.5 on), in bytes.
const (
	MSIXEntryAddrLow  = 0x00 // u32
	MSIXEntryAddrHigh = 0x04 // u32
	MSIXEntryData     = 0x08 // u32
	MSIXEntryControl  = 0x0c // u32
	MSIXEntryLen      = 16

	// MSIXEntryMasked is the mask bit in the control word; it is set after a reset.
	MSIXEntryMasked = 1 << 0
)

// MSIXEntry is one MSI-X vector.
type MSIXEntry struct {
	Addr   uint64
	Data   uint32
	Masked bool
}

// Encode writes the entry to b, which must hold MSIXEntryLen bytes.
func (e MSIXEntry) Encode(b []byte) {
	b = b[:MSIXEntryLen]
	binary.LittleEndian.PutUint64(b[MSIXEntryAddrLow:], e.Addr)
	binary.LittleEndian.PutUint32(b[MSIXEntryData:], e.Data)
	var control uint32
	if e.Masked {
		control = MSIXEntryMasked
	}
	binary.LittleEndian.PutUint32(b[MSIXEntryControl:], control)
}

// DecodeMSIXEntry reads the entry at the start of b, which must hold
// MSIXEntryLen bytes.
func DecodeMSIXEntry(b []byte) MSIXEntry {
	b = b[:MSIXEntryLen]
	return MSIXEntry{
		Addr:   binary.LittleEndian.Uint64(b[MSIXEntryAddrLow:]),
		Data:   binary.LittleEndian.Uint32(b[MSIXEntryData:]),
		Masked: binary.LittleEndian.Uint32(b[MSIXEntryControl:])&MSIXEntryMasked != 0,
	}
}

// MSIXTableLen returns the length in bytes of a table of n vectors.
func MSIXTableLen(n int) int { return n * MSIXEntryLen }

// MSIXPBALen returns the length in bytes of the pending bits of n vectors, which
// come in 64-bit words.
func MSIXPBALen(n int) int { return (n + 63) / 64 * 8 }
