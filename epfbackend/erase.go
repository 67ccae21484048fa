package epfbackend

import (
	"errors"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

var (
	errRangeFlags = errors.New("reserved flags in a range")
	errRangeCount = errors.New("no ranges, more than the limit, or an incomplete one")
	errRangeSize  = errors.New("a range longer than the limit")
)

// eraseOp returns what a request of ranges does at the disk, and the flags that
// its ranges may carry.
func eraseOp(t virtioblk.RequestType) (op disk.Op, flags uint32) {
	switch t {
	case virtioblk.TypeDiscard:
		return disk.Discard, 0
	case virtioblk.TypeSecureErase:
		return disk.SecureErase, 0
	}
	return disk.WriteZeroes, virtioblk.RangeUnmap
}

func (w *worker) canErase(t virtioblk.RequestType) bool {
	info := &w.f.info
	switch t {
	case virtioblk.TypeDiscard:
		return info.Discard.Supported
	case virtioblk.TypeSecureErase:
		return info.SecureErase.Supported
	}
	return info.WriteZeroes.Supported
}

// eraseRanges begins a discard, write-zeroes or secure erase request (virtio
// 1.4 §5.2.6.2). All ranges are checked before the first is executed.
func (w *worker) eraseRanges(r *request) (virtioblk.Status, bool) {
	switch {
	case w.f.readOnly:
		return virtioblk.StatusIOErr, false
	case !w.canErase(r.header.Type):
		return virtioblk.StatusUnsupp, false
	case r.dataLen == 0 || r.dataLen%virtioblk.RangeLen != 0 || r.dataLen > int64(len(r.ranges)):
		return w.refuse(r, "ranges", errRangeCount), false
	}
	ranges := r.ranges[:r.dataLen]
	if r.first != nil {
		copy(ranges, r.first.buf)
	} else if _, err := w.gather(ranges, r.data); err != nil {
		return w.refuse(r, "ranges", err), false
	}
	_, allowed := eraseOp(r.header.Type)
	for b := ranges; len(b) > 0; b = b[virtioblk.RangeLen:] {
		g := virtioblk.DecodeRange(b)
		if g.Flags&^allowed != 0 {
			w.refuse(r, "ranges", errRangeFlags)
			return virtioblk.StatusUnsupp, false
		}
		if g.NumSectors > maxRangeSectors {
			return w.refuse(r, "ranges", errRangeSize), false
		}
		if _, ok := w.position(g.Sector, int64(g.NumSectors)*virtioblk.SectorSize); !ok {
			return w.refuse(r, "ranges", errOutside), false
		}
	}
	r.rest = ranges
	return w.eraseNext(r)
}

// eraseNext starts the next range that is not empty.
func (w *worker) eraseNext(r *request) (virtioblk.Status, bool) {
	for len(r.rest) > 0 {
		g := virtioblk.DecodeRange(r.rest)
		r.rest = r.rest[virtioblk.RangeLen:]
		if g.NumSectors == 0 {
			continue
		}
		r.io.Op, _ = eraseOp(r.header.Type)
		r.io.Offset = int64(g.Sector) * virtioblk.SectorSize
		r.io.Length = int64(g.NumSectors) * virtioblk.SectorSize
		r.io.Iov = nil
		r.io.Unmap = g.Flags&virtioblk.RangeUnmap != 0
		r.io.Durable = !w.f.cached()
		w.start(r)
		return 0, true
	}
	return virtioblk.StatusOK, false
}
