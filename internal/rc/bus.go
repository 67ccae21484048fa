package rc

import (
	"errors"
	"fmt"

	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// Registers are the configuration space and the BARs of one function. Accesses
// may be of any length and alignment that lies inside them.
type Registers interface {
	ReadConfig(off int, p []byte) error
	WriteConfig(off int, p []byte) error
	ReadBAR(bar int, off uint64, p []byte) error
	WriteBAR(bar int, off uint64, p []byte) error
}

// Bus is everything that joins a host to one function. It is used by one
// goroutine at a time, except for accesses to BARs.
type Bus interface {
	Registers

	// Map lets the function reach memory, Unmap takes it away again. When Unmap
	// returns, the function no longer uses it.
	Map(r Region) error
	Unmap(addr, size uint64) error

	// Vectors says which eventfd is signalled by each MSI-X vector, -1 for none.
	// They stay the caller's, and open until replaced.
	Vectors(fds []int) error

	// INTx says which eventfd is signalled when the interrupt pin becomes
	// asserted, -1 for none.
	INTx(fd int) error

	// EndINTx ends an interrupt of the pin: if it is still asserted, or again, the
	// eventfd is signalled once more.
	EndINTx() error

	// Reset is a function-level reset.
	Reset() error
}

// Region is a range of memory as the function sees it.
type Region struct {
	Addr, Size uint64 // bus address and length in bytes
	FD         int    // of the file that backs it, the caller's; -1: reached by messages
	Offset     int64  // in the file
	ReadOnly   bool   // for the function
}

// MapMemory maps all of mem.
func MapMemory(b Bus, mem *vringtest.Memory) error {
	for _, r := range mem.Regions() {
		if err := b.Map(RegionOf(r)); err != nil {
			return fmt.Errorf("map memory at %#x: %w", r.Base, err)
		}
	}
	return nil
}

// UnmapMemory takes all of mem away from the function.
func UnmapMemory(b Bus, mem *vringtest.Memory) error {
	var errs []error
	for _, r := range mem.Regions() {
		if err := b.Unmap(r.Base, uint64(r.Size)); err != nil {
			errs = append(errs, fmt.Errorf("unmap memory at %#x: %w", r.Base, err))
		}
	}
	return errors.Join(errs...)
}

// RegionOf returns a region of guest memory as Bus takes it.
func RegionOf(r *vringtest.Region) Region {
	return Region{Addr: r.Base, Size: uint64(r.Size), FD: r.FD(), ReadOnly: r.ReadOnly}
}
