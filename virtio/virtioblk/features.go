package virtioblk

import "github.com/vblk-ep/vblk-ep/virtio"

// DeviceType is the virtio device type of a block device (§5).
const DeviceType = 2

// Feature bits of block devices (§5.2.3).
const (
	SizeMax     virtio.Feature = 1  // Config.SizeMax bounds a segment
	SegMax      virtio.Feature = 2  // Config.SegMax bounds a request
	HasGeometry virtio.Feature = 4  // Config.Geometry is valid
	ReadOnly    virtio.Feature = 5  // writes are refused
	BlkSize     virtio.Feature = 6  // Config.BlkSize is valid
	Flush       virtio.Feature = 9  // the flush request is there
	HasTopology virtio.Feature = 10 // Config.Topology is valid
	ConfigWCE   virtio.Feature = 11 // the driver may change Config.Writeback
	MQ          virtio.Feature = 12 // Config.NumQueues is valid
	Discard     virtio.Feature = 13 // the discard request is there
	WriteZeroes virtio.Feature = 14 // the write-zeroes request is there
	HasLifetime virtio.Feature = 15 // the lifetime request is there
	SecureErase virtio.Feature = 16 // the secure erase request is there
	HasZoned    virtio.Feature = 17 // Config.Zoned is valid
)

// FeatureNames names the feature bits of block devices, for
// virtio.Features.Describe.
var FeatureNames = virtio.Names{
	SizeMax:     "SIZE_MAX",
	SegMax:      "SEG_MAX",
	HasGeometry: "GEOMETRY",
	ReadOnly:    "RO",
	BlkSize:     "BLK_SIZE",
	Flush:       "FLUSH",
	HasTopology: "TOPOLOGY",
	ConfigWCE:   "CONFIG_WCE",
	MQ:          "MQ",
	Discard:     "DISCARD",
	WriteZeroes: "WRITE_ZEROES",
	HasLifetime: "LIFETIME",
	SecureErase: "SECURE_ERASE",
	HasZoned:    "ZONED",
}
