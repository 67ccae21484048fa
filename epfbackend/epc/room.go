package epc

// Room is what an endpoint controller has for the BARs of a function that sees no
// register accesses.
type Room struct {
	// Granule is what the sizes of ranges and of BARs are multiples of, in bytes: a
	// power of two, at least 4096.
	Granule uint64

	// SubRanges says that parts of one BAR may lead to different places.
	SubRanges bool

	BARs     [6]Place
	Doorbell Doorbell
}

// Place is what a controller can do with one BAR.
type Place struct {
	Free  bool   // it can be programmed
	Fixed uint64 // its only size in bytes; 0: there is a choice
	Least uint64 // the smallest size in bytes
	Wide  bool   // 64 bits: the next one is not there
}

// DoorbellKind says how a controller tells of the host's notifications.
type DoorbellKind uint8

// The kinds of doorbell.
const (
	NoDoorbell     DoorbellKind = iota // not at all: memory must be looked at
	DoorbellEach                       // an interrupt for each queue: the value written selects
	DoorbellShared                     // one interrupt for all, whatever is written
)

// String implements fmt.Stringer.
func (k DoorbellKind) String() string {
	switch k {
	case DoorbellEach:
		return "one interrupt each"
	case DoorbellShared:
		return "one interrupt for all"
	}
	return "none"
}

// Doorbell is a register that takes notifications of 16 bits: every queue's index
// is written to the same address.
type Doorbell struct {
	Kind DoorbellKind

	// Offset is where the register is in its range, Size how long that is: a
	// multiple of the granule. The range must be put into a BAR.
	Offset, Size uint64

	// Exposed says that it is in a BAR already, at Offset of BAR.
	Exposed bool
	BAR     int
}

// Rung is what a Function can be, too: one whose notifications the controller
// passes on.
type Rung interface {
	// Doorbells returns the eventfd of each queue, which is to be signalled when its
	// notification arrives. They are the function's, and open as long as it is.
	Doorbells() []int
}

// DoorbellMapper is what a Controller can be, too: one that cannot put the doorbell
// into its BAR before the host has placed that BAR.
type DoorbellMapper interface {
	// MapDoorbell is called when a driver has begun to set up the function, and
	// again, now and then, after it has said no. It says whether the host's
	// notifications ring from now on; until then they are written to the memory of
	// the BAR, at the doorbell's place.
	MapDoorbell() bool
}
