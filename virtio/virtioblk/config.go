package virtioblk

import "encoding/binary"

// Offsets in the configuration space (§5.2.4, struct virtio_blk_config), in bytes.
const (
	CfgCapacity             = 0x00 // u64
	CfgSizeMax              = 0x08 // u32
	CfgSegMax               = 0x0c // u32
	CfgCylinders            = 0x10 // u16
	CfgHeads                = 0x12 // u8
	CfgSectors              = 0x13 // u8
	CfgBlkSize              = 0x14 // u32
	CfgPhysicalBlockExp     = 0x18 // u8
	CfgAlignmentOffset      = 0x19 // u8
	CfgMinIOSize            = 0x1a // u16
	CfgOptIOSize            = 0x1c // u32
	CfgWriteback            = 0x20 // u8, the only field that a driver may write
	CfgNumQueues            = 0x22 // u16
	CfgMaxDiscardSectors    = 0x24 // u32
	CfgMaxDiscardSeg        = 0x28 // u32
	CfgDiscardAlignment     = 0x2c // u32
	CfgMaxZeroSectors       = 0x30 // u32
	CfgMaxZeroSeg           = 0x34 // u32
	CfgZeroMayUnmap         = 0x38 // u8
	CfgMaxEraseSectors      = 0x3c // u32
	CfgMaxEraseSeg          = 0x40 // u32
	CfgEraseAlignment       = 0x44 // u32
	CfgZoneSectors          = 0x48 // u32
	CfgMaxOpenZones         = 0x4c // u32
	CfgMaxActiveZones       = 0x50 // u32
	CfgMaxAppendSectors     = 0x54 // u32
	CfgZoneWriteGranularity = 0x58 // u32
	CfgZoneModel            = 0x5c // u8

	// ConfigLen is the length of the configuration space.
	ConfigLen = 0x60
)

// Config is the configuration space of a block device. Sectors are of
// SectorSize bytes whatever the block size. A field is meaningful to the driver
// only if the feature that is named with it is offered; it is encoded anyway.
type Config struct {
	Capacity uint64 // in sectors
	SizeMax  uint32 // longest segment in bytes; SizeMax
	SegMax   uint32 // most data segments in a request; SegMax
	Geometry Geometry
	BlkSize  uint32 // logical block size in bytes; BlkSize
	Topology Topology

	Writeback bool   // the cache is a write-back one; ConfigWCE
	NumQueues uint16 // MQ

	Discard     Limits // Discard
	WriteZeroes Limits // WriteZeroes; it has no Alignment
	MayUnmap    bool   // write-zeroes with the unmap flag may deallocate; WriteZeroes
	SecureErase Limits // SecureErase
	Zoned       Zoned
}

// Geometry is a disk geometry of the old kind; HasGeometry.
type Geometry struct {
	Cylinders uint16
	Heads     uint8
	Sectors   uint8 // of a track
}

// Topology says which requests suit the disk; HasTopology.
type Topology struct {
	PhysicalBlockExp uint8  // logical blocks in a physical one, as a power of two
	AlignmentOffset  uint8  // of the first aligned block, in logical blocks
	MinIOSize        uint16 // in logical blocks
	OptIOSize        uint32 // in logical blocks
}

// Limits bounds a discard, write-zeroes or secure erase request.
type Limits struct {
	MaxSectors uint32 // of one segment
	MaxSeg     uint32 // segments of one request
	Alignment  uint32 // of a segment, in sectors
}

// Zone models.
const (
	ZoneModelNone        = 0
	ZoneModelHostManaged = 1
	ZoneModelHostAware   = 2
)

// Zoned describes a zoned disk; HasZoned.
type Zoned struct {
	ZoneSectors      uint32
	MaxOpenZones     uint32
	MaxActiveZones   uint32
	MaxAppendSectors uint32
	WriteGranularity uint32 // in bytes
	Model            uint8
}

// Encode writes the configuration space to b, which must hold ConfigLen bytes.
// Unused bytes become 0.
func (c *Config) Encode(b []byte) {
	b = b[:ConfigLen]
	clear(b)
	le := binary.LittleEndian
	le.PutUint64(b[CfgCapacity:], c.Capacity)
	le.PutUint32(b[CfgSizeMax:], c.SizeMax)
	le.PutUint32(b[CfgSegMax:], c.SegMax)
	le.PutUint16(b[CfgCylinders:], c.Geometry.Cylinders)
	b[CfgHeads] = c.Geometry.Heads
	b[CfgSectors] = c.Geometry.Sectors
	le.PutUint32(b[CfgBlkSize:], c.BlkSize)
	b[CfgPhysicalBlockExp] = c.Topology.PhysicalBlockExp
	b[CfgAlignmentOffset] = c.Topology.AlignmentOffset
	le.PutUint16(b[CfgMinIOSize:], c.Topology.MinIOSize)
	le.PutUint32(b[CfgOptIOSize:], c.Topology.OptIOSize)
	b[CfgWriteback] = flag(c.Writeback)
	le.PutUint16(b[CfgNumQueues:], c.NumQueues)
	le.PutUint32(b[CfgMaxDiscardSectors:], c.Discard.MaxSectors)
	le.PutUint32(b[CfgMaxDiscardSeg:], c.Discard.MaxSeg)
	le.PutUint32(b[CfgDiscardAlignment:], c.Discard.Alignment)
	le.PutUint32(b[CfgMaxZeroSectors:], c.WriteZeroes.MaxSectors)
	le.PutUint32(b[CfgMaxZeroSeg:], c.WriteZeroes.MaxSeg)
	b[CfgZeroMayUnmap] = flag(c.MayUnmap)
	le.PutUint32(b[CfgMaxEraseSectors:], c.SecureErase.MaxSectors)
	le.PutUint32(b[CfgMaxEraseSeg:], c.SecureErase.MaxSeg)
	le.PutUint32(b[CfgEraseAlignment:], c.SecureErase.Alignment)
	le.PutUint32(b[CfgZoneSectors:], c.Zoned.ZoneSectors)
	le.PutUint32(b[CfgMaxOpenZones:], c.Zoned.MaxOpenZones)
	le.PutUint32(b[CfgMaxActiveZones:], c.Zoned.MaxActiveZones)
	le.PutUint32(b[CfgMaxAppendSectors:], c.Zoned.MaxAppendSectors)
	le.PutUint32(b[CfgZoneWriteGranularity:], c.Zoned.WriteGranularity)
	b[CfgZoneModel] = c.Zoned.Model
}

// Decode reads the configuration space from b, which must hold ConfigLen bytes.
func (c *Config) Decode(b []byte) {
	b = b[:ConfigLen]
	le := binary.LittleEndian
	*c = Config{
		Capacity: le.Uint64(b[CfgCapacity:]),
		SizeMax:  le.Uint32(b[CfgSizeMax:]),
		SegMax:   le.Uint32(b[CfgSegMax:]),
		Geometry: Geometry{
			Cylinders: le.Uint16(b[CfgCylinders:]),
			Heads:     b[CfgHeads],
			Sectors:   b[CfgSectors],
		},
		BlkSize: le.Uint32(b[CfgBlkSize:]),
		Topology: Topology{
			PhysicalBlockExp: b[CfgPhysicalBlockExp],
			AlignmentOffset:  b[CfgAlignmentOffset],
			MinIOSize:        le.Uint16(b[CfgMinIOSize:]),
			OptIOSize:        le.Uint32(b[CfgOptIOSize:]),
		},
		Writeback: b[CfgWriteback] != 0,
		NumQueues: le.Uint16(b[CfgNumQueues:]),
		Discard: Limits{
			MaxSectors: le.Uint32(b[CfgMaxDiscardSectors:]),
			MaxSeg:     le.Uint32(b[CfgMaxDiscardSeg:]),
			Alignment:  le.Uint32(b[CfgDiscardAlignment:]),
		},
		WriteZeroes: Limits{
			MaxSectors: le.Uint32(b[CfgMaxZeroSectors:]),
			MaxSeg:     le.Uint32(b[CfgMaxZeroSeg:]),
		},
		MayUnmap: b[CfgZeroMayUnmap] != 0,
		SecureErase: Limits{
			MaxSectors: le.Uint32(b[CfgMaxEraseSectors:]),
			MaxSeg:     le.Uint32(b[CfgMaxEraseSeg:]),
			Alignment:  le.Uint32(b[CfgEraseAlignment:]),
		},
		Zoned: Zoned{
			ZoneSectors:      le.Uint32(b[CfgZoneSectors:]),
			MaxOpenZones:     le.Uint32(b[CfgMaxOpenZones:]),
			MaxActiveZones:   le.Uint32(b[CfgMaxActiveZones:]),
			MaxAppendSectors: le.Uint32(b[CfgMaxAppendSectors:]),
			WriteGranularity: le.Uint32(b[CfgZoneWriteGranularity:]),
			Model:            b[CfgZoneModel],
		},
	}
}

func flag(set bool) uint8 {
	if set {
		return 1
	}
	return 0
}
