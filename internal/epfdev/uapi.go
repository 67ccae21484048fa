package epfdev

import "unsafe"

// The kernel's interface, include/uapi/linux/pci-epf-user.h. Values are in the byte
// order of the machine: this is memory shared with our own kernel, not a wire
// format.

const (
	apiVersion = 1
	magic      = 0xEF
)

// What can be done with a BAR.
const (
	BARFree      = 1 << 0 // it can be programmed
	BARFixed     = 1 << 1 // in one size only
	BAR64Only    = 1 << 2
	BARResizable = 1 << 3 // not below MinResizable bytes

	MinResizable = 1 << 20
)

// What a controller has.
const (
	HasMSIX     = 1 << 0
	HasMSI      = 1 << 1
	HasINTx     = 1 << 2
	HasCaps     = 1 << 3
	HasSubRange = 1 << 4
	HasDMA      = 1 << 5
	HasLink     = 1 << 6
	HasDynamic  = 1 << 7
)

// The status of a function.
const (
	Committed      = 1 << 0
	Initialized    = 1 << 1
	LinkUp         = 1 << 2
	BusMaster      = 1 << 3
	BusMasterKnown = 1 << 4 // the controller tells of bus mastering: without BusMaster, the host is out of reach
	RangesMapped   = 1 << 5
)

// BARInfo says what can be done with a BAR.
type BARInfo struct {
	Flags uint32
	_     uint32
	Fixed uint64 // bytes
}

// Info is what a function and its controller are like.
type Info struct {
	argsz, flags  uint32
	Version       uint32
	Features      uint32
	Status        uint32
	FuncNo        uint32
	BARAlign      uint32 // bytes
	ChannelsTo    uint32 // DMA channels to the host
	ChannelsFrom  uint32
	MaxSegment    uint32 // bytes; 0: no limit
	DMAAlign      uint32 // bytes
	MaxSegments   uint32 // of a transfer
	WindowTotal   uint64 // bytes of outbound memory
	WindowAlign   uint32
	StateSize     uint32 // bytes
	MaxDoorbells  uint32
	CapsRoom      uint32 // bytes
	BARs          [6]BARInfo
	controller    [64]byte
	dmaDriverName [32]byte
	Changes       uint64 // events since the function was bound: Sequence of the last one
}

// Header is the identifying part of configuration space.
type Header struct {
	argsz, flags                   uint32
	Vendor, Device                 uint16
	SubsysVendor, SubsysDevice     uint16
	Class                          uint32
	Revision, Pin, CacheLine, zero uint8
}

type capability struct {
	argsz, flags uint32
	size, zero   uint32
	data         [256]byte
}

// Kinds and properties of doorbells.
const (
	DoorbellITS    = 1 // one interrupt each
	DoorbellShared = 2 // one for all

	Doorbell16Bit   = 1 << 0
	DoorbellLinear  = 1 << 1
	DoorbellExposed = 1 << 2
)

// Doorbells is what was allocated.
type Doorbells struct {
	argsz, Flags uint32
	Count        uint32
	Kind         uint32
	RangeOffset  uint32 // of the register in its range
	RangeSize    uint32 // bytes
	BAR          uint32 // where it is exposed
	Data         uint32 // of the first one
	Offset       uint64
}

// Kinds of ranges and flags of BARs.
const (
	RangeMemory   = 0
	RangeDoorbell = 1

	BARMem64    = 1 << 0
	BARPrefetch = 1 << 1
)

const maxRanges = 8

// Range is a part of a BAR.
type Range struct {
	Kind uint32
	_    uint32
	Size uint64
}

type bar struct {
	argsz, flags uint32
	bar, count   uint32
	size         uint64
	ranges       [maxRanges]Range
}

type msix struct {
	argsz, flags uint32
	vectors, bar uint32
	offset       uint64
}

type eventfd struct {
	argsz, flags uint32
	doorbell     uint32
	fd           int32
}

const irqMSIX = 2

type irq struct {
	argsz, flags uint32
	kind, vector uint32
}

// Kinds of events.
const (
	EventInit      = 1
	EventDeinit    = 2
	EventLinkUp    = 3
	EventLinkDown  = 4
	EventBusMaster = 5
)

// Event is something that happened to the function, with the status that held then.
// Sequence counts from 1 when the function is bound, also while it is not open: see
// Info.Changes.
type Event struct {
	Type, Status uint32
	Sequence     uint64
}

type buffer struct {
	argsz, flags uint32
	addr         unsafe.Pointer
	size         uint64
	id, zero     uint32
}

// Segment is one part of a transfer.
type Segment struct {
	Addr   uint64 // bus address
	Offset uint32 // in the buffer
	Length uint32 // bytes
}

// Flags of transfers.
const (
	ToHost = 1 << 0
	ByCPU  = 1 << 1
)

type transfer struct {
	segments unsafe.Pointer
	count    uint16
	flags    uint16
	buffer   uint32
}

type copySegment struct {
	pci    uint64
	addr   unsafe.Pointer
	length uint32
	flags  uint32
}

// Limits of a transfer and of a copy.
const (
	MaxBytes      = 16 << 20
	MaxCopies     = 64 // segments of a copy
	maxCapability = 192
)

type copyArgs struct {
	argsz, flags uint32
	segments     unsafe.Pointer
	count, zero  uint32
}

// Offsets of mappings.
const (
	mmapBAR   = 1 << 32 // times the BAR
	mmapState = 8 << 32
)

// Directions of calls, as _IOC has them.
const (
	iocNone  = 0
	iocWrite = 1
	iocRead  = 2
)

func ioc(direction, nr int, size uintptr) uintptr {
	return uintptr(direction)<<30 | size<<16 | magic<<8 | uintptr(nr)
}

// The calls.
var (
	callInfo           = ioc(iocRead|iocWrite, 0x00, unsafe.Sizeof(Info{}))
	callSetHeader      = ioc(iocWrite, 0x01, unsafe.Sizeof(Header{}))
	callAddCapability  = ioc(iocWrite, 0x02, unsafe.Sizeof(capability{}))
	callAllocDoorbells = ioc(iocRead|iocWrite, 0x03, unsafe.Sizeof(Doorbells{}))
	callSetBAR         = ioc(iocRead|iocWrite, 0x04, unsafe.Sizeof(bar{}))
	callSetMSIX        = ioc(iocWrite, 0x05, unsafe.Sizeof(msix{}))
	callCommit         = ioc(iocNone, 0x06, 0)
	callRevoke         = ioc(iocNone, 0x07, 0)
	callSetEventfd     = ioc(iocWrite, 0x08, unsafe.Sizeof(eventfd{}))
	callRaiseIRQ       = ioc(iocWrite, 0x09, unsafe.Sizeof(irq{}))
	callRegister       = ioc(iocRead|iocWrite, 0x0a, unsafe.Sizeof(buffer{}))
	callUnregister     = ioc(iocWrite, 0x0b, unsafe.Sizeof(buffer{}))
	callCopy           = ioc(iocWrite, 0x0c, unsafe.Sizeof(copyArgs{}))
	callMapRanges      = ioc(iocNone, 0x0f, 0)
	cmdTransfer        = ioc(iocRead|iocWrite, 0x80, unsafe.Sizeof(transfer{}))
)
