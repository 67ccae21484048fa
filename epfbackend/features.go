package epfbackend

import (
	"math"
	"math/bits"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

const (
	maxSegments = 254 // data segments of a request

	// Discard, write-zeroes and secure erase take several ranges in a request,
	// each executed on its own. A range is bounded so that none of them keeps
	// a reset waiting for long.
	maxRanges       = 16
	maxRangeSectors = 1 << 30 / virtioblk.SectorSize
)

// offer returns what is offered for a disk: what the transport brings, and what
// the disk can really do.
func offer(info disk.Info, queues int) virtio.Features {
	f := virtio.NewFeatures(
		virtio.Version1, virtio.AccessPlatform, virtio.OrderPlatform,
		virtio.IndirectDesc, virtio.EventIdx, virtio.RingReset,
		virtioblk.SegMax, virtioblk.BlkSize, virtioblk.HasTopology,
		virtioblk.Flush, virtioblk.ConfigWCE,
	)
	add := func(have bool, bit virtio.Feature) {
		if have {
			f = f.With(bit)
		}
	}
	add(queues > 1, virtioblk.MQ)
	add(info.ReadOnly, virtioblk.ReadOnly)
	add(!info.ReadOnly && info.Discard.Supported, virtioblk.Discard)
	add(!info.ReadOnly && info.WriteZeroes.Supported, virtioblk.WriteZeroes)
	add(!info.ReadOnly && info.SecureErase.Supported, virtioblk.SecureErase)
	add(info.Lifetime != nil, virtioblk.HasLifetime)
	return f
}

// deviceConfig returns the device-specific configuration of a disk.
func deviceConfig(info disk.Info, o *Options) []byte {
	c := virtioblk.Config{
		Capacity: uint64(info.Size) / virtioblk.SectorSize,
		SegMax:   uint32(segMax(o.QueueSize)),
		BlkSize:  info.LogicalBlock,
		Topology: virtioblk.Topology{
			PhysicalBlockExp: uint8(bits.Len32(max(info.PhysicalBlock/info.LogicalBlock, 1)) - 1),
			AlignmentOffset:  uint8(min(info.AlignmentOffset/info.LogicalBlock, math.MaxUint8)),
			MinIOSize:        uint16(min(info.MinIO/info.LogicalBlock, math.MaxUint16)),
			OptIOSize:        info.OptIO / info.LogicalBlock,
		},
		Writeback:   !o.WriteThrough,
		NumQueues:   uint16(o.Queues),
		Discard:     limits(info.Discard, info.LogicalBlock),
		WriteZeroes: limits(info.WriteZeroes, info.LogicalBlock),
		MayUnmap:    info.ZeroUnmaps,
		SecureErase: limits(info.SecureErase, info.LogicalBlock),
	}
	b := make([]byte, virtioblk.ConfigLen)
	c.Encode(b)
	return b
}

func limits(l disk.RangeLimits, block uint32) virtioblk.Limits {
	if !l.Supported {
		return virtioblk.Limits{}
	}
	return virtioblk.Limits{
		MaxSectors: uint32(min(l.MaxBytes/virtioblk.SectorSize, maxRangeSectors)),
		MaxSeg:     maxRanges,
		Alignment:  max(l.Granularity, block) / virtioblk.SectorSize,
	}
}

// segMax leaves room for the header and the status in a ring of the given size.
func segMax(queueSize int) int { return min(queueSize-2, maxSegments) }
