package epfbackend

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

const (
	maxSegments    = 254     // data segments of a request
	maxSegmentSize = 4 << 20 // bytes of one, where a limit must be named

	// Discard, write-zeroes and secure erase take several ranges in a request,
	// each executed on its own. A range is bounded so that none of them keeps
	// a reset waiting for long.
	maxRanges       = 16
	maxRangeSectors = 1 << 30 / virtioblk.SectorSize
)

// wanted returns what is worth offering for a disk: what the transport brings,
// and what the disk can really do.
func wanted(info disk.Info, queues int) virtio.Features {
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

// offer decides what the driver is offered.
func (f *Function) offer() (err error) {
	want := wanted(f.info, f.opts.Queues)
	if !f.opts.TrapFree {
		if f.opts.Rings != RingSplit {
			want = want.With(virtio.RingPacked)
		}
		f.offered = want
		return nil
	}
	f.mirror, err = regfile.Solve(want.With(virtio.RingPacked), regfile.Transport{
		Doorbell32: !f.opts.Doorbell16, PackedRings: true, ReadOnly: f.readOnly,
		Queues: f.opts.Queues, LogicalBlock: f.info.LogicalBlock,
	})
	f.offered = f.mirror.Offered
	f.accepted = f.offered // or any part of it: see the evidence
	if err == nil && f.mirror.BlockSize != f.info.LogicalBlock {
		err = f.blockSizeLost()
	}
	return err
}

// blockSizeLost refuses a disk that a driver would take for one of 512-byte blocks.
func (f *Function) blockSizeLost() error {
	e := &disk.Error{
		Path: f.info.Path, Kind: disk.ErrUnsupported, Mend: "add block-size=512",
		What: fmt.Sprintf("has blocks of %d bytes, and no driver can be told", f.info.LogicalBlock),
	}
	for _, l := range f.mirror.Lost {
		if l.Feature == virtioblk.BlkSize {
			e.What += ": " + l.String()
		}
	}
	return e
}

// cached says whether a write may complete before it is durable. Where it is not
// known what the driver accepted, only a flush shows that it knows of the cache.
func (f *Function) cached() bool {
	return f.writeback.Load() && (!f.opts.TrapFree || f.flushes.Load() && f.cacheOn())
}

// cacheOn looks whether the driver has left the cache on. A driver that turns it off
// counts on that from its next write on, which may be here before the sampler looks.
func (f *Function) cacheOn() bool {
	const word, shift = virtioblk.CfgWriteback &^ 3, virtioblk.CfgWriteback & 3 * 8
	return f.config.Load32(word)>>shift&1 != 0
}

// deviceConfig returns the device-specific configuration of the disk as it is.
func (f *Function) deviceConfig() []byte {
	info, o := f.info, &f.opts
	info.Size = f.size.Load()
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
	if o.TrapFree { // their feature bits come with others'
		c.SizeMax, c.Geometry = maxSegmentSize, geometry(info.Size)
	}
	b := make([]byte, virtioblk.ConfigLen)
	c.Encode(b)
	return b
}

// geometry returns cylinders, heads and sectors of a disk, as far as they reach.
func geometry(size int64) virtioblk.Geometry {
	const heads, sectors = 16, 63
	cylinders := size / virtioblk.SectorSize / (heads * sectors)
	return virtioblk.Geometry{
		Cylinders: uint16(min(cylinders, math.MaxUint16)), Heads: heads, Sectors: sectors,
	}
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
