package vring

import "errors"

// ErrUnmapped is what Memory wraps for an address that nobody mapped, or not for
// that access.
var ErrUnmapped = errors.New("address is not mapped")

// Malformed is something that the driver got wrong in a queue. The constants are
// all there are; errors wrap them with the place where they were met.
type Malformed string

func (m Malformed) Error() string { return string(m) }

// IsMalformed reports whether err is the driver's fault, and not a failure to
// reach host memory.
func IsMalformed(err error) bool {
	var m Malformed
	return errors.As(err, &m)
}

// What can be wrong with a queue as it is set up. NewSplit and NewPacked return
// these.
const (
	ErrSize        = Malformed("queue size is not from 1 to 32768, or no power of two in a split virtqueue")
	ErrRingAddress = Malformed("ring address is misaligned or wraps around")
)

// What can be wrong with a ring. These stop the queue, and the chain they were
// met in is not fetched.
const (
	ErrAvailIndex      = Malformed("available index is further ahead than the queue size") // split
	ErrHead            = Malformed("head of chain is out of range")                        // split
	ErrNext            = Malformed("next descriptor is out of range")                      // split
	ErrLoop            = Malformed("descriptor chain has a loop")                          // split
	ErrOverrun         = Malformed("more descriptors are available than the ring has")     // packed
	ErrUnavailable     = Malformed("descriptor inside a chain is not available")           // packed
	ErrTooLong         = Malformed("descriptor chain is too long")
	ErrOrder           = Malformed("readable descriptor after a writable one")
	ErrAddress         = Malformed("buffer wraps around the address space")
	ErrIndirect        = Malformed("indirect descriptor, but the feature was not negotiated")
	ErrIndirectNext    = Malformed("indirect descriptor inside a chain")
	ErrIndirectNested  = Malformed("indirect descriptor inside an indirect table") // split
	ErrIndirectLength  = Malformed("length of indirect table is zero or not a multiple of 16")
	ErrIndirectTooLong = Malformed("indirect table is too long")
)

// What can be wrong with a chain in a sound ring. Next returns these together
// with the chain, and the queue goes on.
const (
	ErrEmpty  = Malformed("descriptor chain has no bytes")
	ErrLength = Malformed("descriptor chain is longer than 4 GiB - 1")
)

// health is why a queue cannot go on, if so.
type health struct {
	broken     error // the driver's fault; final
	unresolved error // of the last Resolve
}

// unable returns why the ring cannot be read, if so.
func (h *health) unable() error {
	if h.broken != nil {
		return h.broken
	}
	return h.unresolved
}

// fail stops the queue if err is the driver's fault.
func (h *health) fail(err error) error {
	if IsMalformed(err) {
		h.broken = err
	}
	return err
}

// resolve finds the parts of the ring in host memory.
func (h *health) resolve(parts ...func() error) error {
	h.unresolved = nil
	for _, resolve := range parts {
		if err := resolve(); err != nil {
			h.unresolved = err
			break
		}
	}
	return h.unresolved
}
