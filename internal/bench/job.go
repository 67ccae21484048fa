package bench

import (
	"errors"
	"fmt"
	"time"

	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// ErrJob reports a job that makes no sense, or not on this disk.
var ErrJob = errors.New("job")

// Job says what load to make. Names are those of fio.
type Job struct {
	Random   bool
	ReadMix  int   // how many of 100 requests read; the others write
	Block    int   // bytes of a request, a multiple of 512
	Depth    int   // requests in flight on each queue
	Offset   int64 // where the part of the disk begins that is used, in bytes
	Size     int64 // of that part; 0: to the end of the disk
	Verify   bool  // check that what is read is what was written
	RampTime time.Duration
	Runtime  time.Duration
	CPUs     []int  // processors that the lanes are pinned to in turn; nil: anywhere
	Seed     uint64 // of positions and data
}

// Workloads maps fio's names for --rw to how many of 100 requests read, and
// whether positions are random. The mixed ones are half and half by default.
var Workloads = map[string]struct {
	ReadMix int
	Random  bool
}{
	"read": {100, false}, "write": {0, false}, "rw": {50, false}, "readwrite": {50, false},
	"randread": {100, true}, "randwrite": {0, true}, "randrw": {50, true},
}

// Writes says whether the job changes the disk.
func (j *Job) Writes() bool { return j.ReadMix < 100 }

// Check reports what makes no sense whatever the disk.
func (j *Job) Check() error {
	switch {
	case j.ReadMix < 0 || j.ReadMix > 100:
		return fmt.Errorf("%w: rwmixread %d: choose 0 to 100", ErrJob, j.ReadMix)
	case j.Block < virtioblk.SectorSize || j.Block%virtioblk.SectorSize != 0 || j.Block > maxBlock:
		return fmt.Errorf("%w: bs %d: choose a multiple of 512 bytes up to %d", ErrJob, j.Block, maxBlock)
	case j.Depth < 1 || j.Depth > maxDepth:
		return fmt.Errorf("%w: iodepth %d: choose 1 to %d", ErrJob, j.Depth, maxDepth)
	case j.Offset < 0 || j.Offset%virtioblk.SectorSize != 0:
		return fmt.Errorf("%w: offset %d: choose a multiple of 512 bytes", ErrJob, j.Offset)
	case j.Size < 0:
		return fmt.Errorf("%w: size %d is negative", ErrJob, j.Size)
	case j.Runtime <= 0 || j.RampTime < 0:
		return fmt.Errorf("%w: runtime %v after %v: choose times above 0", ErrJob, j.Runtime, j.RampTime)
	case j.Verify && !j.Writes():
		return fmt.Errorf("%w: verify checks what the job wrote, and this one only reads: choose a workload that writes", ErrJob)
	}
	return nil
}

const (
	maxBlock = 16 << 20
	maxDepth = 32768

	// maxTracked bounds the memory of a verified job: four bytes a block.
	maxTracked = 64 << 20
)

// span is a lane's part of the disk, in blocks of the job's size from the start of
// the part of the disk that the job uses.
type span struct{ first, n uint64 }

// spans divides the disk among the lanes.
func (j *Job) spans(diskSize int64, lanes int) ([]span, error) {
	end := diskSize
	if j.Size > 0 {
		end = j.Offset + j.Size
	}
	if end > diskSize {
		return nil, fmt.Errorf("%w: offset and size end at %d, and the disk has %d bytes", ErrJob, end, diskSize)
	}
	blocks := uint64(max(end-j.Offset, 0)) / uint64(j.Block)
	each := blocks / uint64(lanes)
	least := uint64(1)
	if j.Verify {
		least = 2 * uint64(j.Depth) // a block is in flight once
	}
	switch {
	case each < least:
		return nil, fmt.Errorf("%w: %d blocks of %d bytes are too few for %d queues and iodepth %d: choose a smaller bs, a larger size or fewer requests",
			ErrJob, blocks, j.Block, lanes, j.Depth)
	case j.Verify && blocks > maxTracked:
		return nil, fmt.Errorf("%w: verify keeps track of at most %d blocks, not %d: choose a smaller size", ErrJob, maxTracked, blocks)
	}
	list := make([]span, lanes)
	for i := range list {
		list[i] = span{uint64(i) * each, each}
	}
	return list, nil
}
