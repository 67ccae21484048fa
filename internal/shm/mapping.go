package shm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Mapping is a shared mapping of (a part of) a file. Whoever created it owns it
// and must Close it after the last use of any slice or Window of it.
type Mapping struct{ b []byte }

// Map maps n bytes of fd from offset off (a multiple of the page size), shared,
// readable, and writable if write is set. The descriptor may be closed after.
func Map(fd int, off int64, n int, write bool) (*Mapping, error) {
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	if n <= 0 {
		return nil, fmt.Errorf("map %d bytes: %w", n, unix.EINVAL)
	}
	b, err := unix.Mmap(fd, off, n, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes at offset %#x: %w", n, off, err)
	}
	return &Mapping{b}, nil
}

// NewMemory creates n bytes of zeroed anonymous shared memory behind a memfd and
// returns its descriptor (owned by the caller) with a writable mapping of it.
func NewMemory(name string, n int) (fd int, m *Mapping, err error) {
	fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, nil, fmt.Errorf("create memory %q: %w", name, err)
	}
	if err = unix.Ftruncate(fd, int64(n)); err == nil {
		m, err = Map(fd, 0, n, true)
	}
	if err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("create memory %q of %d bytes: %w", name, n, err)
	}
	return fd, m, nil
}

// Seal fixes the size of memory that NewMemory made: whoever else gets the
// descriptor cannot make accesses to it fault.
func Seal(fd int) error {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
		unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("seal memory: %w", err)
	}
	return nil
}

// Bytes returns the mapped memory, valid until Close.
func (m *Mapping) Bytes() []byte { return m.b }

// Close unmaps. Nothing may use the memory any more.
func (m *Mapping) Close() error {
	if m.b == nil {
		return nil
	}
	b := m.b
	m.b = nil
	return unix.Munmap(b)
}
