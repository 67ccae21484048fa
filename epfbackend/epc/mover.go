package epc

// Direction says which way a Move goes.
type Direction uint8

// The directions, as the function sees them.
const (
	FromHost Direction = iota
	ToHost
)

// Part is one stretch of host memory and as many bytes of ours.
type Part struct {
	Addr  uint64 // bus address, any alignment
	Local []byte // inside the memory that the mover was made with
}

// Move is one transfer of several parts. Its owner fills it in, and leaves it and
// its memory alone between Start and Completed.
type Move struct {
	Dir   Direction
	Parts []Part
	Tag   int // the owner's

	Err error // nil if every byte arrived
}

// Mover moves data between host memory and ours, while others do something else:
// a queue's share of a DMA engine. It belongs to one goroutine.
//
// Moves complete in any order. Of one Move to the host, the bytes of a part arrive
// before those of the next. What a completed Move brought to the host is there
// before anything that is started, written (Transfer) or raised afterwards.
type Mover interface {
	// Start takes a move on. It never waits: what the engine has no room for is
	// kept until it has.
	Start(m *Move)

	// Submit hands what was started to the engine.
	Submit() error

	// Completed returns moves that have ended, each once; the slice is valid until
	// the next call. It does not wait: when there is more after it, or after a
	// Submit, the bell that the mover was made with rings.
	Completed() []*Move

	// Close waits until no memory is in use any more, at most as long as the
	// engine needs to give up, and releases the mover.
	Close() error
}

// Moving is what a Controller can be, too: one whose host memory is reached by DMA.
type Moving interface {
	// NewMover returns a mover with room for depth moves in flight. memory is all
	// the local memory that its parts will name, aligned to pages; it stays the
	// caller's and must stay mapped until the mover is closed. bell is an eventfd
	// that is signalled when moves have ended.
	NewMover(depth int, memory []byte, bell int) (Mover, error)
}
