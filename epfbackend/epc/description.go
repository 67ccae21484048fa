package epc

// Description is a function's face in configuration space.
type Description struct {
	Identity Identity

	// BARs holds the function's base address registers; a zero Size is an
	// absent one.
	BARs [6]BAR

	// Capabilities are complete PCI capabilities (identifier, a next pointer
	// that the controller fills in, body), in list order. MSI-X is not among
	// them: the controller makes it from MSIX.
	Capabilities []Capability

	MSIX MSIX
}

// Identity is the identifying part of a type 0 header (PCI 3.0 §6.2.1).
type Identity struct {
	Vendor, Device                   uint16
	SubsystemVendor, SubsystemDevice uint16
	Revision                         uint8
	Class                            uint32 // 24 bits: base class, subclass, interface
	InterruptPin                     uint8  // 0 none, 1 INTA … 4 INTD
}

// BAR is one base address register: memory space, not prefetchable.
type BAR struct {
	Size uint64 // bytes, a power of two, at least 16
	Wide bool   // 64 bits: the next BAR is absent

	// Memory lists the parts of the BAR that are plain memory: the host's
	// accesses there go to Controller.BARMemory, and the function does not learn
	// of them. Offsets and sizes are multiples of 4096.
	Memory []Area

	// Doorbell is the part that leads to the controller's doorbell; a zero Size
	// means none.
	Doorbell Area
}

// Area is a part of a BAR.
type Area struct {
	Offset, Size uint64 // bytes
}

// Holds says whether n bytes at off lie in the area.
func (a Area) Holds(off, n uint64) bool {
	return off >= a.Offset && off-a.Offset <= a.Size && n <= a.Size-(off-a.Offset)
}

// IsMemory says whether n bytes at off are plain memory.
func (b *BAR) IsMemory(off, n uint64) bool {
	for _, a := range b.Memory {
		if a.Holds(off, n) {
			return true
		}
	}
	return false
}

// Capability is one entry of the capability list.
type Capability struct {
	Data []byte // from the capability identifier on; byte 1 is the controller's

	// Writable marks the bits of Data that the host may change (same length,
	// or nil for none).
	Writable []byte

	// Window, when set, makes the last four bytes of Data a view of a BAR: each
	// access to them becomes an access to Window(Data) (virtio 1.4 §4.1.4.9).
	Window func(data []byte) (bar int, off uint64, n int)
}

// MSIX says where the MSI-X structures of a function are (PCI 3.0 §6.8.2).
type MSIX struct {
	Vectors     int // 0: none; at most 2048
	TableBAR    int
	TableOffset uint32
	PBABAR      int
	PBAOffset   uint32
}
