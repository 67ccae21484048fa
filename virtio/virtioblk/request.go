package virtioblk

import (
	"encoding/binary"
	"fmt"
)

const (
	// SectorSize is the unit of capacities and positions, in bytes, whatever the
	// block size (§5.2.6).
	SectorSize = 512
	// IDLen is the length of what a GetID request returns, in bytes: a string
	// that ends with a NUL unless it fills them all.
	IDLen = 20
)

// RequestType says what a request asks for (§5.2.6).
type RequestType uint32

// Request types.
const (
	TypeIn           RequestType = 0 // read
	TypeOut          RequestType = 1 // write
	TypeFlush        RequestType = 4
	TypeGetID        RequestType = 8
	TypeGetLifetime  RequestType = 10
	TypeDiscard      RequestType = 11
	TypeWriteZeroes  RequestType = 13
	TypeSecureErase  RequestType = 14
	TypeZoneAppend   RequestType = 15
	TypeZoneReport   RequestType = 16
	TypeZoneOpen     RequestType = 18
	TypeZoneClose    RequestType = 20
	TypeZoneFinish   RequestType = 22
	TypeZoneReset    RequestType = 24
	TypeZoneResetAll RequestType = 26
)

// String returns the specification's name of t without its prefix.
func (t RequestType) String() string {
	switch t {
	case TypeIn:
		return "IN"
	case TypeOut:
		return "OUT"
	case TypeFlush:
		return "FLUSH"
	case TypeGetID:
		return "GET_ID"
	case TypeGetLifetime:
		return "GET_LIFETIME"
	case TypeDiscard:
		return "DISCARD"
	case TypeWriteZeroes:
		return "WRITE_ZEROES"
	case TypeSecureErase:
		return "SECURE_ERASE"
	case TypeZoneAppend:
		return "ZONE_APPEND"
	case TypeZoneReport:
		return "ZONE_REPORT"
	case TypeZoneOpen:
		return "ZONE_OPEN"
	case TypeZoneClose:
		return "ZONE_CLOSE"
	case TypeZoneFinish:
		return "ZONE_FINISH"
	case TypeZoneReset:
		return "ZONE_RESET"
	case TypeZoneResetAll:
		return "ZONE_RESET_ALL"
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// Status is the byte that the device writes last into a request (§5.2.6).
type Status uint8

// Request status values.
const (
	StatusOK                 Status = 0
	StatusIOErr              Status = 1 // the device or the driver failed
	StatusUnsupp             Status = 2 // the device does not know this request
	StatusZoneInvalidCmd     Status = 3
	StatusZoneUnalignedWP    Status = 4
	StatusZoneOpenResource   Status = 5
	StatusZoneActiveResource Status = 6

	// StatusLen is the length of the status in a request, in bytes.
	StatusLen = 1
)

// String returns the specification's name of s without its prefix.
func (s Status) String() string {
	switch s {
	case StatusOK:
		return "OK"
	case StatusIOErr:
		return "IOERR"
	case StatusUnsupp:
		return "UNSUPP"
	case StatusZoneInvalidCmd:
		return "ZONE_INVALID_CMD"
	case StatusZoneUnalignedWP:
		return "ZONE_UNALIGNED_WP"
	case StatusZoneOpenResource:
		return "ZONE_OPEN_RESOURCE"
	case StatusZoneActiveResource:
		return "ZONE_ACTIVE_RESOURCE"
	}
	return fmt.Sprintf("status %d", uint8(s))
}

// Layout of the request header (§5.2.6, struct virtio_blk_req), in bytes.
const (
	HeaderType   = 0x00 // u32
	HeaderIOPrio = 0x04 // u32, reserved; old drivers put a priority there
	HeaderSector = 0x08 // u64
	HeaderLen    = 16
)

// Header is the first, device-readable part of a request.
type Header struct {
	Type   RequestType
	IOPrio uint32 // to be ignored
	Sector uint64 // where to read or write; 0 for requests without a position
}

// Encode writes the header to b, which must hold HeaderLen bytes.
func (h Header) Encode(b []byte) {
	b = b[:HeaderLen]
	binary.LittleEndian.PutUint32(b[HeaderType:], uint32(h.Type))
	binary.LittleEndian.PutUint32(b[HeaderIOPrio:], h.IOPrio)
	binary.LittleEndian.PutUint64(b[HeaderSector:], h.Sector)
}

// DecodeHeader reads the header at the start of b, which must hold HeaderLen bytes.
func DecodeHeader(b []byte) Header {
	b = b[:HeaderLen]
	return Header{
		Type:   RequestType(binary.LittleEndian.Uint32(b[HeaderType:])),
		IOPrio: binary.LittleEndian.Uint32(b[HeaderIOPrio:]),
		Sector: binary.LittleEndian.Uint64(b[HeaderSector:]),
	}
}

// Layout of a range (§5.2.6, struct virtio_blk_discard_write_zeroes), in bytes.
const (
	RangeSector     = 0x00 // u64
	RangeNumSectors = 0x08 // u32
	RangeFlags      = 0x0c // u32
	RangeLen        = 16

	// RangeUnmap is the flag that lets write-zeroes deallocate. Discard and
	// secure erase have no flags; all other bits are reserved, and the device
	// answers StatusUnsupp to them.
	RangeUnmap = 1 << 0
)

// Range is one segment of the data of a discard, write-zeroes or secure erase
// request.
type Range struct {
	Sector     uint64
	NumSectors uint32
	Flags      uint32
}

// Encode writes the range to b, which must hold RangeLen bytes.
func (r Range) Encode(b []byte) {
	b = b[:RangeLen]
	binary.LittleEndian.PutUint64(b[RangeSector:], r.Sector)
	binary.LittleEndian.PutUint32(b[RangeNumSectors:], r.NumSectors)
	binary.LittleEndian.PutUint32(b[RangeFlags:], r.Flags)
}

// DecodeRange reads the range at the start of b, which must hold RangeLen bytes.
func DecodeRange(b []byte) Range {
	b = b[:RangeLen]
	return Range{
		Sector:     binary.LittleEndian.Uint64(b[RangeSector:]),
		NumSectors: binary.LittleEndian.Uint32(b[RangeNumSectors:]),
		Flags:      binary.LittleEndian.Uint32(b[RangeFlags:]),
	}
}

// Layout of the answer to GetLifetime (§5.2.6, struct virtio_blk_lifetime).
const (
	LifetimePreEOL = 0x00 // u16
	LifetimeTypeA  = 0x02 // u16
	LifetimeTypeB  = 0x04 // u16
	LifetimeLen    = 6
)

// Lifetime is the answer to a GetLifetime request, in the values of eMMC: 0 is
// "undefined"; PreEOL 1 to 3 is normal, 80 % and 90 % of the reserved blocks
// consumed; TypeA and TypeB are tenths of the life used (1 to 10; 11 is exceeded).
type Lifetime struct{ PreEOL, TypeA, TypeB uint16 }

// Encode writes the answer to b, which must hold LifetimeLen bytes.
func (l Lifetime) Encode(b []byte) {
	b = b[:LifetimeLen]
	binary.LittleEndian.PutUint16(b[LifetimePreEOL:], l.PreEOL)
	binary.LittleEndian.PutUint16(b[LifetimeTypeA:], l.TypeA)
	binary.LittleEndian.PutUint16(b[LifetimeTypeB:], l.TypeB)
}

// DecodeLifetime reads the answer at the start of b, which must hold LifetimeLen
// bytes.
func DecodeLifetime(b []byte) Lifetime {
	b = b[:LifetimeLen]
	return Lifetime{
		PreEOL: binary.LittleEndian.Uint16(b[LifetimePreEOL:]),
		TypeA:  binary.LittleEndian.Uint16(b[LifetimeTypeA:]),
		TypeB:  binary.LittleEndian.Uint16(b[LifetimeTypeB:]),
	}
}
