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

// What can be wrong with a queue as it is set up. NewSplit returns these.
const (
	ErrSize        = Malformed("queue size is not a power of two from 1 to 32768")
	ErrRingAddress = Malformed("ring address is misaligned or wraps around")
)

// What can be wrong with a ring. These stop the queue, and the chain they were
// met in is not fetched.
const (
	ErrAvailIndex      = Malformed("available index is further ahead than the queue size")
	ErrHead            = Malformed("head of chain is out of range")
	ErrNext            = Malformed("next descriptor is out of range")
	ErrLoop            = Malformed("descriptor chain has a loop")
	ErrTooLong         = Malformed("descriptor chain is too long")
	ErrOrder           = Malformed("readable descriptor after a writable one")
	ErrAddress         = Malformed("buffer wraps around the address space")
	ErrIndirect        = Malformed("indirect descriptor, but the feature was not negotiated")
	ErrIndirectNext    = Malformed("indirect descriptor inside a chain")
	ErrIndirectNested  = Malformed("indirect descriptor inside an indirect table")
	ErrIndirectLength  = Malformed("length of indirect table is zero or not a multiple of 16")
	ErrIndirectTooLong = Malformed("indirect table is too long")
)

// What can be wrong with a chain in a sound ring. Next returns these together
// with the chain, and the queue goes on.
const (
	ErrEmpty  = Malformed("descriptor chain has no bytes")
	ErrLength = Malformed("descriptor chain is longer than 4 GiB - 1")
)
