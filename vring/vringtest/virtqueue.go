package vringtest

import (
	"errors"

	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/vring"
)

// Bits of a descriptor's flags (virtio 1.4 §2.7.5, §2.8). The last two exist in
// packed virtqueues only.
const (
	FlagNext     = 1
	FlagWrite    = 2
	FlagIndirect = 4
	FlagAvail    = 1 << 7
	FlagUsed     = 1 << 15
)

// Config says what virtqueue a driver lays out.
type Config struct {
	Size     int // descriptors
	Packed   bool
	EventIdx bool
	// Indirect is how many descriptors an indirect table can hold; 0 is without
	// the feature. There are as many tables as descriptors.
	Indirect int
	Start    uint16 // of the ring, as in vring.Config; 0 on a device after a reset
	// Skew puts the areas at their weakest alignment: 2 and 4 bytes beyond a
	// multiple of 64.
	Skew bool
	// FirstID is the smallest buffer ID of a packed virtqueue. IDs are any numbers
	// that the driver likes; here they are Size of them in a row.
	FirstID uint16
}

// Virtqueue is the driver side of one virtqueue, whatever its layout. It belongs
// to one goroutine.
type Virtqueue interface {
	// Queue returns what the device has to know of the virtqueue.
	Queue() vring.Config

	// Free returns how many descriptors are free.
	Free() int

	// InFlight returns how many chains were added and not yet collected.
	InFlight() int

	// Add adds a chain of direct descriptors, which the device sees after Kick.
	// It returns the head, by which Collect will name the chain. Errors are
	// ErrNoRoom and ErrMixed.
	Add(readable, writable []vring.Segment) (head uint16, err error)

	// AddIndirect adds a chain of one descriptor that refers to a table of the
	// rest.
	AddIndirect(readable, writable []vring.Segment) (head uint16, err error)

	// AddMixed adds a chain whose first descriptors are direct; the rest are in
	// an indirect table. In a packed virtqueue there is only the one or the other.
	AddMixed(readable, writable []vring.Segment, direct int) (head uint16, err error)

	// Kick makes what was added visible and reports whether the device wants to
	// be notified of it.
	Kick() (notify bool)

	// Collect returns the next used chain, if there is one. Its descriptors are
	// free again. The error wraps ErrDevice.
	Collect() (u Used, ok bool, err error)

	// EnableInterrupts asks for an interrupt for the next used chain and reports
	// whether one came meanwhile: then there may be no interrupt.
	EnableInterrupts() (more bool)

	// DisableInterrupts says that interrupts are not needed.
	DisableInterrupts()
}

// New lays a virtqueue out in mem.
func New(mem *Memory, cfg Config) (Virtqueue, error) {
	if cfg.Packed {
		return NewPackedDriver(mem, cfg)
	}
	return NewDriver(mem, cfg)
}

// Used is a chain that the device gave back.
type Used struct {
	Head    uint16
	Written uint32 // bytes
}

// What Add and Collect report.
var (
	// ErrNoRoom reports that there are not enough free descriptors, or that an
	// indirect table is too small.
	ErrNoRoom = errors.New("no room in the virtqueue")
	// ErrMixed reports a chain that only a split virtqueue can have.
	ErrMixed = errors.New("direct and indirect descriptors in a chain of a packed virtqueue")
	// ErrDevice reports that the device broke the rules.
	ErrDevice = errors.New("device misbehaves")
)

// part is an area to be laid out.
type part struct {
	addr    *uint64
	window  *shm.Window
	n, skew int // in bytes
}

func layOut(mem *Memory, parts []part) error {
	for _, p := range parts {
		addr, err := mem.Alloc(p.n+p.skew, 64)
		if err != nil {
			return err
		}
		*p.addr = addr + uint64(p.skew)
		*p.window = mem.Window(*p.addr, p.n)
	}
	return nil
}

// segment returns the nth part of a chain with its flags.
func segment(readable, writable []vring.Segment, n int) (vring.Segment, uint16) {
	if n < len(readable) {
		return readable[n], 0
	}
	return writable[n-len(readable)], FlagWrite
}
