package lab

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

// errNothing reports an address at which a guest has nothing.
var errNothing = errors.New("nothing is there")

// messages reach what a guest has not given us as a file: its MMIO, and memory
// of its monitor's own.
type messages interface {
	ReadDMA(p []byte, addr uint64) error
	WriteDMA(p []byte, addr uint64) error
}

// memory is what one guest lets us reach, by bus address: its RAM, mapped, and
// all else by messages.
type memory struct {
	far messages

	mu      sync.RWMutex // held for reading while mapped memory is touched
	regions []region     // sorted by address
}

// region is a mapped part of a guest's RAM.
type region struct {
	addr, size uint64
	fd         int // of the file behind it, ours
	offset     uint64
	mapping    *shm.Mapping
	writable   bool
}

func (r *region) release() {
	_ = r.mapping.Close()
	_ = unix.Close(r.fd)
}

// add takes over what a client announces. Memory without a descriptor is
// reached by messages, like everything that nobody announced.
func (m *memory) add(d vfiouser.DMAMap, fd int) error {
	if fd < 0 {
		return nil
	}
	r, err := newRegion(d, fd)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i, found := m.find(r.addr)
	switch {
	case len(m.regions) >= vfiouser.MaxDMAMaps:
		r.release()
		return fmt.Errorf("memory [%#x, +%#x) would be range %d: %w", r.addr, r.size, len(m.regions)+1, syscall.ENOSPC)
	case found || i < len(m.regions) && m.regions[i].addr-r.addr < r.size:
		r.release()
		return fmt.Errorf("memory [%#x, +%#x) overlaps other: %w", r.addr, r.size, syscall.EEXIST)
	}
	m.regions = slices.Insert(m.regions, i, r)
	return nil
}

func newRegion(d vfiouser.DMAMap, fd int) (region, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return region{}, fmt.Errorf("file of guest memory: %w", err)
	}
	page := uint64(os.Getpagesize())
	if (d.Addr|d.Size|d.Offset)%page != 0 || d.Offset > math.MaxInt64/2 || d.Size > math.MaxInt64/2 ||
		st.Mode&unix.S_IFMT != unix.S_IFREG || d.Offset+d.Size > uint64(st.Size) {
		return region{}, fmt.Errorf("memory of %#x bytes at offset %#x of a file of %#x: %w",
			d.Size, d.Offset, st.Size, syscall.EINVAL)
	}
	r := region{addr: d.Addr, size: d.Size, fd: fd, offset: d.Offset, writable: d.Flags&vfiouser.DMAMapWrite != 0}
	var err error
	r.mapping, err = shm.Map(fd, int64(d.Offset), int(d.Size), r.writable)
	return r, err
}

// remove takes memory away. When it returns, nobody touches it any more.
func (m *memory) remove(d vfiouser.DMAUnmap) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.regions = slices.DeleteFunc(m.regions, func(r region) bool {
		inside := r.addr >= d.Addr && r.addr-d.Addr < d.Size && r.size <= d.Size-(r.addr-d.Addr)
		if d.Flags&vfiouser.DMAUnmapAll == 0 && !inside {
			return false
		}
		r.release()
		return true
	})
}

func (m *memory) removeAll() { m.remove(vfiouser.DMAUnmap{Flags: vfiouser.DMAUnmapAll}) }

// find returns the index of the region that holds addr, or where it would be.
// The caller holds m.mu.
func (m *memory) find(addr uint64) (int, bool) {
	i, found := slices.BinarySearchFunc(m.regions, addr, func(r region, a uint64) int {
		switch {
		case a < r.addr:
			return 1
		case a-r.addr < r.size:
			return 0
		}
		return -1
	})
	return i, found
}

// near returns the longest prefix of [addr, addr+n) that is mapped memory which
// may be accessed so, or nil and the length of the prefix that is not. The
// caller holds m.mu for reading as long as it uses the memory.
func (m *memory) near(addr uint64, n uint64, write bool) (b []byte, rest uint64) {
	i, found := m.find(addr)
	if !found {
		if i < len(m.regions) {
			n = min(n, m.regions[i].addr-addr)
		}
		return nil, n
	}
	r := &m.regions[i]
	off := addr - r.addr
	n = min(n, r.size-off)
	if write && !r.writable {
		return nil, n
	}
	return r.mapping.Bytes()[off:][:n], n
}

// read copies a guest's memory to p; write the other way. Accesses of up to 8
// naturally aligned bytes reach the other side as one.
func (m *memory) read(p []byte, addr uint64) error {
	return m.each(p, addr, false, func(b, p []byte) { shm.Of(b).Read(p, 0) }, m.far.ReadDMA)
}

func (m *memory) write(p []byte, addr uint64) error {
	return m.each(p, addr, true, func(b, p []byte) { shm.Of(b).Write(0, p) }, m.far.WriteDMA)
}

func (m *memory) each(p []byte, addr uint64, write bool, move func(b, p []byte), far func([]byte, uint64) error) error {
	for len(p) > 0 {
		m.mu.RLock()
		b, n := m.near(addr, uint64(len(p)), write)
		var err error
		if b != nil {
			err = shm.Guard(func() error { move(b, p[:n]); return nil })
		}
		m.mu.RUnlock()
		if b == nil {
			err = far(p[:n], addr)
		}
		if err != nil {
			return fmt.Errorf("%w at %#x: %w", errNothing, addr, err)
		}
		p, addr = p[n:], addr+n
	}
	return nil
}

// isRAM says whether all of [addr, addr+n) is mapped memory.
func (m *memory) isRAM(addr, n uint64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for n > 0 {
		b, k := m.near(addr, n, false)
		if b == nil {
			return false
		}
		addr, n = addr+k, n-k
	}
	return true
}

// file returns a descriptor, the caller's, of the file that holds all of [addr,
// addr+n), and where in it.
func (m *memory) file(addr, n uint64) (fd int, offset uint64, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i, found := m.find(addr)
	if !found {
		return -1, 0, false
	}
	r := &m.regions[i]
	if n > r.size-(addr-r.addr) || !r.writable {
		return -1, 0, false
	}
	fd, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	return fd, r.offset + (addr - r.addr), err == nil
}

// copyAcross copies up to n bytes between mapped memory of two guests, or of one,
// and returns how many; 0 if one end has to be reached by messages. The locks are
// taken in one order, that of the RC first.
func copyAcross(rc, local *memory, remoteAddr, localAddr, n uint64, fromRC bool) (uint64, error) {
	rc.mu.RLock()
	defer rc.mu.RUnlock()
	if local != rc {
		local.mu.RLock()
		defer local.mu.RUnlock()
	}
	far, _ := rc.near(remoteAddr, n, !fromRC)
	near, _ := local.near(localAddr, n, fromRC)
	to, from := far, near
	if fromRC {
		to, from = near, far
	}
	n = uint64(min(len(to), len(from)))
	if n == 0 {
		return 0, nil
	}
	return n, shm.Guard(func() error { copy(to[:n], from); return nil })
}
