package lab

// Identity of the controller in the endpoint's guest. Test-only: no such
// hardware exists.
const (
	VendorID = 0x7e57
	DeviceID = 0x0ec0
)

// What a controller has of everything.
const (
	numFunctions = 4
	numBARs      = 6
	numRanges    = 64
	numWindows   = 128
	numChannels  = 8

	granule = 4096 // of inbound ranges and outbound windows, in bytes

	registersBAR  = 0
	registersSize = 64 << 10
	windowBAR     = 2
	windowSize    = 64 << 20
	msixBAR       = 4
	msixBARSize   = 4096
	msixPBA       = 0x800

	vectorEvents   = 0
	vectorChannel  = 1 // and up
	vectorDoorbell = vectorChannel + numChannels
	numVectors     = vectorDoorbell + 1

	minBARSize = 4096
	maxBARSize = 1 << 30
)

// Blocks of registers in BAR 0.
const (
	blockGlobal  = 0x0000
	blockBARs    = 0x0100
	blockRanges  = 0x0800
	blockConfig  = 0x1000
	blockWindows = 0x2000
	blockDMA     = 0x4000

	// The doorbell is alone in its page, so that an inbound range exposes nothing
	// else.
	blockDoorbell = 0x7000

	// The registers of a function, which for the first one are at 0, too.
	blockFunctions = 0x8000
	strideFunction = 0x2000

	strideBAR     = 0x20
	strideRange   = 0x20
	strideWindow  = 0x20
	strideChannel = 0x40
)

// Registers of the controller and, from STATUS to IRQ_RESULT, of each function.
const (
	RegID          = 0x00
	RegVersion     = 0x04
	RegCaps0       = 0x08
	RegCaps1       = 0x0c
	RegControl     = 0x10
	RegStatus      = 0x14
	RegEvent       = 0x18
	RegEventEnable = 0x1c
	RegMSI         = 0x20
	RegMSIX        = 0x24
	RegMSIXTable   = 0x28
	RegMSIXPBA     = 0x2c
	RegCapNext     = 0x30
	RegFunction    = 0x34
	RegCaps2       = 0x38
	RegIRQRaise    = 0x40
	RegIRQResult   = 0x44
	RegOBErrorLo   = 0x50
	RegOBErrorHi   = 0x54
	RegOBErrors    = 0x58

	identity = 0x3142414c // "LAB1"
	version  = 1
)

// Bits of CONTROL.
const (
	ControlLinkEnable = 1 << 0
	ControlReset      = 1 << 31
)

// Bits of STATUS.
const (
	StatusLinkUp    = 1 << 0
	StatusBusMaster = 1 << 1
	StatusMemory    = 1 << 2
	StatusMSI       = 1 << 3
	StatusMSIX      = 1 << 4
	StatusINTxOff   = 1 << 5
)

// Bits of EVENT, in the order in which they are handled.
const (
	EventLinkDown      = 1 << 0
	EventPERSTAssert   = 1 << 1
	EventPERSTDeassert = 1 << 2
	EventLinkUp        = 1 << 3
	EventBusMaster     = 1 << 4
	EventIRQEnable     = 1 << 5
	EventOBError       = 1 << 6

	allEvents = 1<<7 - 1
)

// FunctionPresent is the bit of FUNCTION.
const FunctionPresent = 1 << 0

// Bits of CAPS2.
const (
	Caps2Doorbell   = 1 << 0
	Caps2Doorbell16 = 1 << 1
	Caps2Forgetful  = 1 << 2

	caps2VectorShift = 8
)

// Fields of MSI, MSIX and IRQ_RAISE.
const (
	CapPresent = 1 << 31

	raiseNumber    = 0xffff
	raiseKindShift = 16

	RaiseINTxAssert   = 0 << raiseKindShift
	RaiseINTxDeassert = 1 << raiseKindShift
	RaiseMSI          = 2 << raiseKindShift
	RaiseMSIX         = 3 << raiseKindShift

	RaiseSent       = 0
	RaiseNoVector   = 1
	RaiseNotAllowed = 2
)

// Registers of one BAR.
const (
	BARControl = 0x00
	BARSizeLo  = 0x08
	BARSizeHi  = 0x0c
	BARAddrLo  = 0x10
	BARAddrHi  = 0x14

	BARPresent      = 1 << 0
	BAR64Bit        = 1 << 1
	BARPrefetchable = 1 << 2
	barControlBits  = BARPresent | BAR64Bit | BARPrefetchable
)

// Registers of one inbound range or outbound window, which are alike.
const (
	MapControl  = 0x00
	MapResult   = 0x04
	MapOffsetLo = 0x08
	MapOffsetHi = 0x0c
	MapSizeLo   = 0x10
	MapSizeHi   = 0x14
	MapAddrLo   = 0x18
	MapAddrHi   = 0x1c

	MapEnable     = 1 << 0
	rangeBARShift = 4 // of a range
	rangeBARMask  = 7
	functionShift = 8 // of a window, and in the flags of a descriptor
	functionMask  = 7

	MapDone     = 0
	MapNoBAR    = 1 // or, for a window, no such function
	MapOutside  = 2
	MapOverlaps = 3
	MapMisfit   = 4
	MapBusy     = 5
)

// Registers of one DMA channel.
const (
	DMAControl = 0x00
	DMAStatus  = 0x04
	DMARingLo  = 0x08
	DMARingHi  = 0x0c
	DMASize    = 0x10
	DMAHead    = 0x14
	DMATail    = 0x18

	DMAEnable = 1 << 0
	DMAPause  = 1 << 1

	DMARunning = 1 << 0
	DMAHalted  = 1 << 1
	DMABusy    = 1 << 2

	minRing = 2
	maxRing = 4096
)

// A DMA descriptor.
const (
	DescFlags  = 0x00
	DescLength = 0x04
	DescLocal  = 0x08
	DescRemote = 0x10
	DescStatus = 0x18
	DescSize   = 0x20

	DescFromRC    = 1 << 0 // RC → EP; else EP → RC
	DescInterrupt = 1 << 1
	DescInsideRC  = 1 << 2 // the local address is one of the RC, too
	descFlagBits  = DescFromRC | DescInterrupt | DescInsideRC | functionMask<<functionShift

	DescDone        = 1
	DescUnsupported = 2
	DescLinkDown    = 3
	DescLocalFault  = 4
	DescMalformed   = 5
	DescInjected    = 6
	DescAborted     = 7
)

// WindowRegister and ChannelRegister return the offset in BAR 0 of a register of
// the n-th outbound window or DMA channel.
func WindowRegister(n, reg int) uint64  { return uint64(blockWindows + n*strideWindow + reg) }
func ChannelRegister(n, reg int) uint64 { return uint64(blockDMA + n*strideChannel + reg) }

// FunctionRegister returns the offset in BAR 0 of a register of the n-th function,
// whose own offset is that of the first function's register.
func FunctionRegister(n int, reg uint64) uint64 {
	return uint64(blockFunctions+n*strideFunction) + reg
}

// BARRegister, RangeRegister and ConfigRegister return the offset in BAR 0 of a
// register of the n-th BAR or range, and of a byte of configuration space. They are
// the first function's.
func BARRegister(n, reg int) uint64   { return uint64(blockBARs + n*strideBAR + reg) }
func RangeRegister(n, reg int) uint64 { return uint64(blockRanges + n*strideRange + reg) }
func ConfigRegister(off int) uint64   { return uint64(blockConfig + off) }
