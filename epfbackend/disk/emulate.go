package disk

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/blkio"
)

// emulated is a store with blocks that are smaller than those of the disk below.
// What is made of whole blocks goes straight through. Of everything else the
// blocks at either end are read, modified and written back as a whole, in one
// write each, while nothing else modifies them. A disk writes a block as a whole
// or not at all; so whatever interrupts us, no byte changes that was not to be
// written.
type emulated struct {
	Store
	logical, block int64 // sizes in bytes: of the blocks presented, and of the disk's own
	readOnly       bool
	spans          spans
}

// Emulate presents s with logical blocks of the given size: a power of two from
// 512 up to the size of its own. The store that it returns owns s.
func Emulate(s Store, logical uint32) (Store, error) {
	info := s.Info()
	if logical < 512 || logical > info.LogicalBlock || logical&(logical-1) != 0 {
		return nil, &Error{
			Path: info.Path, Kind: ErrSize, Mend: "leave the block size out",
			What: fmt.Sprintf("has blocks of %d bytes, which cannot be presented as %d", info.LogicalBlock, logical),
		}
	}
	if logical == info.LogicalBlock {
		return s, nil
	}
	if info.NativeBlock > info.LogicalBlock {
		return nil, fmt.Errorf("%s: blocks are emulated already: %w", info.Path, unix.EINVAL)
	}
	return newEmulated(s, logical), nil
}

// newEmulated presents s with blocks of that size, which may be that of its own: then
// parts of blocks can be accessed.
func newEmulated(s Store, logical uint32) *emulated {
	info := s.Info()
	return &emulated{
		Store: s, logical: int64(logical), block: int64(info.LogicalBlock), readOnly: info.ReadOnly,
	}
}

// Info implements Store. The disk's own blocks are shown as physical ones, which
// drivers align to.
func (s *emulated) Info() Info {
	i := s.Store.Info()
	block := i.LogicalBlock
	if i.LogicalBlock = uint32(s.logical); i.LogicalBlock < block {
		i.NativeBlock = block
	}
	i.PhysicalBlock = max(i.PhysicalBlock, block)
	i.MinIO = max(i.MinIO, block)
	i.Discard.Granularity = max(i.Discard.Granularity, block)
	i.SecureErase.Granularity = max(i.SecureErase.Granularity, block)
	i.WriteZeroes.Granularity = i.LogicalBlock
	return i
}

// NewEngine implements Store. The engine rings doorbell itself when another one is
// out of its way; so its user sees more rings than were sent.
func (s *emulated) NewEngine(kind EngineKind, depth, doorbell int) (Engine, error) {
	jobs := min(depth, maxJobs)
	if depth < 1 || depth+2*jobs > MaxDepth {
		return nil, fmt.Errorf("engine of depth %d: %w", depth, unix.EINVAL)
	}
	// Each job needs up to three operations in place of one.
	inner, err := s.Store.NewEngine(kind, depth+2*jobs, doorbell)
	if err != nil {
		return nil, err
	}
	e := &emulatedEngine{
		s: s, inner: inner, doorbell: doorbell, depth: depth,
		line: make([]*IO, 0, depth), done: make([]*IO, 0, depth), out: make([]*IO, 0, depth),
	}
	e.copy = e.copyEdges
	for range jobs {
		e.jobs = append(e.jobs, newJob())
	}
	e.free = append(e.free, e.jobs...)
	return e, nil
}

// straight says whether io is made of whole blocks of the disk.
func (s *emulated) straight(io *IO) bool {
	return io.Op == Flush || (io.Offset|io.Length)&(s.block-1) == 0
}

// sound says whether io is an operation that there is, on the disk. The store below
// refuses what is not, and touches nothing.
func (s *emulated) sound(io *IO) bool {
	if io.Op > SecureErase || io.Op != Read && s.readOnly {
		return false
	}
	size := s.Store.Info().Size
	if io.Offset < 0 || io.Length <= 0 || io.Offset > size || io.Length > size-io.Offset {
		return false
	}
	if io.Op == Read || io.Op == Write {
		total, _, _ := blkio.Shape(io.Iov)
		return total == io.Length
	}
	return true
}
