package virtiopci

// Identifiers of a virtio device (§4.1.2). A modern device's device id is
// DeviceIDBase plus its virtio device type, and its revision is at least 1.
const (
	VendorID     = 0x1af4
	DeviceIDBase = 0x1040
	Revision     = 1
)

// Offsets in the type 0 PCI configuration header (PCIe 7.5.1).
const (
	ConfigVendorID          = 0x00 // u16
	ConfigDeviceID          = 0x02 // u16
	ConfigCommand           = 0x04 // u16
	ConfigStatus            = 0x06 // u16
	ConfigRevision          = 0x08 // u8
	ConfigClass             = 0x09 // u24: programming interface, subclass, base class
	ConfigCacheLineSize     = 0x0c // u8
	ConfigLatencyTimer      = 0x0d // u8
	ConfigHeaderType        = 0x0e // u8
	ConfigBIST              = 0x0f // u8
	ConfigBAR0              = 0x10 // u32, six of them
	ConfigSubsystemVendorID = 0x2c // u16
	ConfigSubsystemID       = 0x2e // u16
	ConfigROM               = 0x30 // u32
	ConfigCapabilities      = 0x34 // u8, offset of the first capability
	ConfigInterruptLine     = 0x3c // u8
	ConfigInterruptPin      = 0x3d // u8, 1 is INTA

	// ConfigHeaderLen is the length of the header; capabilities come after it.
	ConfigHeaderLen = 0x40
	// ConfigLen is the length of PCI configuration space, ExtendedConfigLen that
	// of PCIe configuration space.
	ConfigLen         = 0x100
	ExtendedConfigLen = 0x1000

	// NumBARs is the number of BARs in the header.
	NumBARs = 6
)

// Bits of the command register.
const (
	CommandIO          = 1 << 0
	CommandMemory      = 1 << 1
	CommandBusMaster   = 1 << 2
	CommandParity      = 1 << 6
	CommandSERR        = 1 << 8
	CommandINTxDisable = 1 << 10
)

// Bits of the status register.
const (
	StatusINTx           = 1 << 3 // INTx is pending
	StatusCapabilityList = 1 << 4
)

// Bits of a BAR (PCIe 7.5.1.2.1).
const (
	BARIO           = 1 << 0
	BAR64           = 2 << 1
	BARPrefetchable = 1 << 3
	BARFlagsMask    = 0xf
)

// Identifiers of capabilities (PCI Code and ID Assignment, §2).
const (
	CapIDPowerManagement = 0x01
	CapIDVendor          = 0x09
	CapIDPCIExpress      = 0x10
	CapIDMSIX            = 0x11
)

// ClassMassStorage is the class code of a mass storage controller without a
// subclass of its own (01 80 00), as ConfigClass holds it.
const ClassMassStorage = 0x018000
