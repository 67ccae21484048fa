package vfiouser

// Indices of a PCI device's regions and interrupts (linux/vfio.h).
const (
	RegionBAR0   = 0
	RegionROM    = 6
	RegionConfig = 7
	RegionVGA    = 8
	NumRegions   = 9

	IRQINTx = 0
	IRQMSI  = 1
	IRQMSIX = 2
	IRQErr  = 3
	IRQReq  = 4
	NumIRQs = 5
)

// Layout is what a device consists of. It does not change while it is served.
type Layout struct {
	Regions [NumRegions]Region
	IRQs    [NumIRQs]IRQ
}

// Region is one region of a device; a zero Size is an absent one.
type Region struct {
	Size  uint64
	Flags uint32 // RegionRead, RegionWrite

	// Areas are the parts that the client may map. They lie in the file FD,
	// which stays the caller's, at Offset plus their own offset. Accesses to
	// all else arrive as ReadRegion and WriteRegion.
	Areas  []Area
	FD     int
	Offset uint64
}

// IRQ is one interrupt index of a device.
type IRQ struct {
	Flags uint32 // IRQEventfd, …
	Count uint32 // interrupts under this index
}

// Device is what a client's commands are executed on. The calls come one at a
// time, in the order of the commands. An error that wraps a syscall.Errno is
// answered with that number, any other with EIO. Clients give up on a command
// after seconds, so no call may take that long.
type Device interface {
	// ReadRegion and WriteRegion access [off, off+len(p)), which lies inside
	// the region.
	ReadRegion(region int, off uint64, p []byte) error
	WriteRegion(region int, off uint64, p []byte) error

	// MapDMA announces client memory. fd is -1 for memory that is reached by
	// ReadDMA and WriteDMA only; else the device owns it.
	MapDMA(m DMAMap, fd int) error
	// UnmapDMA withdraws the regions in a range, or all with DMAUnmapAll.
	// Nothing may touch them once it has returned nil.
	UnmapDMA(m DMAUnmap) error

	// SetIRQs configures, masks or triggers interrupts of an index; the range
	// is checked. The device owns the descriptors, also when it fails.
	SetIRQs(s IRQSet) error

	// Reset is a device reset.
	Reset() error
}
