package vringtest

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/vring"
)

// Range is a range of bus addresses to be backed by memory.
type Range struct {
	Base     uint64
	Size     int  // in bytes, a multiple of the page size
	ReadOnly bool // for the device
}

// Memory is guest memory: some ranges of bus addresses, each behind a descriptor
// of its own. It implements vring.Memory for the device; the driver uses Bytes
// and Window. All methods but Alloc and Close may be called at any time from any
// goroutine.
type Memory struct {
	regions  []*Region
	transfer atomic.Bool
	counts   [2]atomic.Int64 // of reads and writes
}

var _ vring.Memory = (*Memory)(nil)

// Region is one range of guest memory.
type Region struct {
	Range
	fd      int
	mapping *shm.Mapping
	used    int // bytes given away by Alloc
	hidden  atomic.Bool
}

// FD returns the descriptor of the memory file behind the region, for a peer to
// map. The region owns it.
func (r *Region) FD() int { return r.fd }

// Hide takes the region away from the device, or gives it back. The driver keeps
// its access. Memory that was lent before stays accessible until Close.
func (r *Region) Hide(hidden bool) { r.hidden.Store(hidden) }

// NewMemory returns zeroed guest memory, to be closed by the caller. Ranges must
// not overlap; between them may be gaps.
func NewMemory(ranges ...Range) (*Memory, error) {
	m := new(Memory)
	for i, r := range ranges {
		fd, mapping, err := shm.NewMemory(fmt.Sprintf("guest memory %d", i), r.Size)
		if err != nil {
			return nil, errors.Join(err, m.Close())
		}
		m.regions = append(m.regions, &Region{Range: r, fd: fd, mapping: mapping})
	}
	return m, nil
}

// Close releases the memory. Nobody may use it any more.
func (m *Memory) Close() error {
	var errs []error
	for _, r := range m.regions {
		errs = append(errs, r.mapping.Close(), unix.Close(r.fd))
	}
	m.regions = nil
	return errors.Join(errs...)
}

// Regions returns the ranges of memory in the order given to NewMemory.
func (m *Memory) Regions() []*Region { return m.regions }

// TransfersOnly says whether the device gets nothing lent and has to use ReadAt
// and WriteAt.
func (m *Memory) TransfersOnly(on bool) { m.transfer.Store(on) }

// Transfers returns how many times the device called ReadAt and WriteAt.
func (m *Memory) Transfers() (reads, writes int64) {
	return m.counts[0].Load(), m.counts[1].Load()
}

// ErrFull reports that no region has room for an allocation.
var ErrFull = errors.New("guest memory is full")

// Alloc gives away n bytes at a multiple of align, a power of two. They are never
// given back.
func (m *Memory) Alloc(n, align int) (uint64, error) {
	for _, r := range m.regions {
		start := (r.Base + uint64(r.used) + uint64(align-1)) &^ uint64(align-1)
		if used := int(start-r.Base) + n; used <= r.Size {
			r.used = used
			return start, nil
		}
	}
	return 0, fmt.Errorf("%w: %d bytes wanted", ErrFull, n)
}

// Bytes returns the longest contiguous prefix of the n bytes at addr, for the
// driver. It is empty where there is no memory.
func (m *Memory) Bytes(addr uint64, n int) []byte {
	r := m.find(addr)
	if r == nil {
		return nil
	}
	off := int(addr - r.Base)
	return r.mapping.Bytes()[off:min(off+n, r.Size)]
}

// Window is Bytes for ordered access.
func (m *Memory) Window(addr uint64, n int) shm.Window { return shm.Of(m.Bytes(addr, n)) }

// Lend implements vring.Memory.
func (m *Memory) Lend(addr uint64, n int, access vring.Access) ([]byte, error) {
	b, err := m.device(addr, n, access)
	if err != nil || m.transfer.Load() {
		return nil, err
	}
	return b, nil
}

// Prefetch implements vring.Prefetcher.
func (m *Memory) Prefetch(addr uint64) {
	if r := m.find(addr); r != nil && !r.hidden.Load() {
		shm.Prefetch(r.mapping.Bytes()[addr-r.Base:])
	}
}

// ReadAt implements vring.Memory.
func (m *Memory) ReadAt(p []byte, addr uint64) error {
	m.counts[0].Add(1)
	for len(p) > 0 {
		b, err := m.device(addr, len(p), vring.Read)
		if err != nil {
			return err
		}
		shm.Of(b).Read(p[:len(b)], 0)
		p, addr = p[len(b):], addr+uint64(len(b))
	}
	return nil
}

// WriteAt implements vring.Memory.
func (m *Memory) WriteAt(p []byte, addr uint64) error {
	m.counts[1].Add(1)
	for len(p) > 0 {
		b, err := m.device(addr, len(p), vring.Write)
		if err != nil {
			return err
		}
		shm.Of(b).Write(0, p[:len(b)])
		p, addr = p[len(b):], addr+uint64(len(b))
	}
	return nil
}

// device returns what Bytes does, if the device may access it.
func (m *Memory) device(addr uint64, n int, access vring.Access) ([]byte, error) {
	r := m.find(addr)
	if r == nil || r.hidden.Load() || r.ReadOnly && access&vring.Write != 0 {
		return nil, fmt.Errorf("%w: %#x", vring.ErrUnmapped, addr)
	}
	return m.Bytes(addr, n), nil
}

func (m *Memory) find(addr uint64) *Region {
	for _, r := range m.regions {
		if addr >= r.Base && addr-r.Base < uint64(r.Size) {
			return r
		}
	}
	return nil
}
