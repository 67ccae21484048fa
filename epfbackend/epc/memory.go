package epc

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/vring"
)

// ErrOverlap reports a region that would overlap another, wrap around the
// address space, or be empty.
var ErrOverlap = errors.New("host memory region is empty, wraps or overlaps another")

// Region is a range of host memory by bus address.
type Region struct {
	Addr uint64 // bus address of the first byte
	Size uint64 // bytes

	// Mem is the region in our address space, nil when it must be reached by
	// transfers.
	Mem []byte

	// Readable and Writable say what the function may do there.
	Readable, Writable bool
}

func (r *Region) allows(a vring.Access) bool {
	return (a&vring.Read == 0 || r.Readable) && (a&vring.Write == 0 || r.Writable)
}

// ErrAway reports that host memory cannot be reached now: the link is down, or the host
// does not let the function be a bus master. Nothing was written. It may be reached
// again, unless the function is reset.
var ErrAway = errors.New("the host cannot be reached")

// Transfer moves bytes to and from host memory that is not mapped.
// Its errors may be ErrAway.
type Transfer interface {
	ReadHost(p []byte, addr uint64) error
	WriteHost(p []byte, addr uint64) error
}

// Memory is the map of host memory that a controller maintains and queue
// workers read. Changes replace the whole table, so a reader never waits; that
// a region's mapping may only be released while the function is paused is the
// controller's duty (Function.Pause).
type Memory struct {
	mu       sync.Mutex
	table    atomic.Pointer[[]Region] // sorted by Addr, never modified
	transfer Transfer
	copier   Copier // what transfer is, too, or nil
}

// NewMemory returns an empty map. transfer reaches the regions without Mem; nil
// if there never are any.
func NewMemory(transfer Transfer) *Memory {
	m := &Memory{transfer: transfer}
	m.copier, _ = transfer.(Copier)
	m.table.Store(new([]Region))
	return m
}

// Add puts a region on the map.
func (m *Memory) Add(r Region) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := *m.table.Load()
	i, found := find(old, r.Addr)
	end := r.Addr + r.Size
	wraps := end < r.Addr && end != 0
	if r.Size == 0 || wraps || found || (i < len(old) && old[i].Addr-r.Addr < r.Size) ||
		(r.Mem != nil && uint64(len(r.Mem)) != r.Size) {
		return fmt.Errorf("%w: [%#x, +%#x)", ErrOverlap, r.Addr, r.Size)
	}
	next := slices.Insert(slices.Clone(old), i, r)
	m.table.Store(&next)
	return nil
}

// Remove takes all regions that lie inside [addr, addr+size) off the map and
// returns them; the caller releases their memory. A region that straddles an
// end of the range stays. A size of 0 means up to the end of the address space.
func (m *Memory) Remove(addr, size uint64) []Region {
	m.mu.Lock()
	defer m.mu.Unlock()
	var removed []Region
	keep := make([]Region, 0, len(*m.table.Load()))
	for _, r := range *m.table.Load() {
		if r.Addr >= addr && (size == 0 || (r.Addr-addr < size && r.Size <= size-(r.Addr-addr))) {
			removed = append(removed, r)
		} else {
			keep = append(keep, r)
		}
	}
	m.table.Store(&keep)
	return removed
}

// Regions returns the map as it is now, sorted by address. It must not be
// modified.
func (m *Memory) Regions() []Region { return *m.table.Load() }

// nowhere holds no address.
var nowhere Region

// View returns a reader of the map for one goroutine. It implements
// vring.Memory.
func (m *Memory) View() *View { return &View{m: m, hit: &nowhere} }

// View is one goroutine's access to a Memory. It remembers the region of the
// last access, so that the common case is a comparison.
type View struct {
	m     *Memory
	table *[]Region
	hit   *Region // of the last access, in table; or nowhere
}

var (
	_ vring.Memory     = (*View)(nil)
	_ vring.Prefetcher = (*View)(nil)
)

// Lend implements vring.Memory: the longest prefix of [addr, addr+n) that lies
// in one mapped region. The slice is valid until the function is next paused.
func (v *View) Lend(addr uint64, n int, a vring.Access) ([]byte, error) {
	r := v.region(addr)
	if r == nil || !r.allows(a) {
		return nil, notMapped(addr)
	}
	if r.Mem == nil {
		return nil, nil
	}
	off := addr - r.Addr
	return r.Mem[off:min(r.Size, off+uint64(n))], nil
}

// ReadAt implements vring.Memory: it copies host memory to p, across regions.
func (v *View) ReadAt(p []byte, addr uint64) error {
	if b := v.near(addr, len(p), vring.Read); b != nil {
		shm.Of(b).Read(p, 0)
		return nil
	}
	return v.each(p, addr, vring.Read)
}

// WriteAt implements vring.Memory: it copies p to host memory, across regions.
func (v *View) WriteAt(p []byte, addr uint64) error {
	if b := v.near(addr, len(p), vring.Write); b != nil {
		shm.Of(b).Write(0, p)
		return nil
	}
	return v.each(p, addr, vring.Write)
}

// Prefetch implements vring.Prefetcher.
func (v *View) Prefetch(addr uint64) {
	if r := v.region(addr); r != nil && r.Mem != nil {
		shm.Prefetch(r.Mem[addr-r.Addr:])
	}
}

// near returns the n bytes at addr where they are all in one mapped region, the
// usual case.
func (v *View) near(addr uint64, n int, a vring.Access) []byte {
	r := v.region(addr)
	if r == nil || !r.allows(a) {
		return nil
	}
	off, size := addr-r.Addr, uint64(len(r.Mem))
	if off > size || uint64(n) > size-off {
		return nil
	}
	return r.Mem[off : off+uint64(n)]
}

func (v *View) each(p []byte, addr uint64, a vring.Access) error {
	for len(p) > 0 {
		r := v.region(addr)
		if r == nil || !r.allows(a) {
			return notMapped(addr)
		}
		off := addr - r.Addr
		n := int(min(uint64(len(p)), r.Size-off))
		var err error
		switch read := a == vring.Read; {
		case r.Mem == nil && v.m.transfer == nil:
			return notMapped(addr)
		case r.Mem == nil && read:
			err = v.m.transfer.ReadHost(p[:n], addr)
		case r.Mem == nil:
			err = v.m.transfer.WriteHost(p[:n], addr)
		case read:
			shm.Of(r.Mem[off:]).Read(p[:n], 0)
		default:
			shm.Of(r.Mem[off:]).Write(0, p[:n])
		}
		if err != nil {
			return fmt.Errorf("transfer %d bytes at %#x: %w", n, addr, err)
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// region returns the region that holds addr, nil if there is none.
func (v *View) region(addr uint64) *Region {
	if r := v.hit; v.m.table.Load() == v.table && addr-r.Addr < r.Size {
		return r
	}
	return v.look(addr)
}

// look is region without what is remembered.
func (v *View) look(addr uint64) *Region {
	v.table = v.m.table.Load()
	t := *v.table
	i, found := find(t, addr)
	if !found {
		v.hit = &nowhere
		return nil
	}
	v.hit = &t[i]
	return v.hit
}

// find returns the index of the region that holds addr, or where one that
// starts there would stand.
func find(t []Region, addr uint64) (int, bool) {
	i, found := slices.BinarySearchFunc(t, addr, func(r Region, a uint64) int {
		switch {
		case a < r.Addr:
			return 1
		case a-r.Addr < r.Size:
			return 0
		}
		return -1
	})
	return i, found
}

func notMapped(addr uint64) error { return fmt.Errorf("%w: %#x", vring.ErrUnmapped, addr) }
