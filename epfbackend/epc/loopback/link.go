package loopback

import "time"

// Link says what a DMA engine and its link are like.
type Link struct {
	// Channels is how many moves are executed at the same time, in either direction.
	// Each executes one at a time; the link is shared by all.
	Channels int

	// Bandwidth is how many bytes a second the link carries, each way at the same
	// time; 0: any number.
	Bandwidth int64

	// RoundTrip is the time from a read request to its first byte. Writes are posted:
	// they take as long as they are on the link.
	RoundTrip time.Duration

	// Segment is the largest number of bytes in one piece, which does not cross a
	// multiple of Boundary in host memory; both are powers of two. Regions of host
	// memory begin and end at such multiples.
	Segment, Boundary int

	// Reads is how many read requests of a segment each a channel has under way.
	Reads int

	// Interleaves says that what transfers read passes what moves read. Otherwise it
	// comes after all that was asked for before.
	Interleaves bool

	// Shuffle makes everything happen in any order that the bus allows, as this seed
	// has it: moves wait for a channel as long as they like; the parts that a move
	// reads come in any order, before or after what others write; of what a move
	// writes, the order is kept. 0: first come, first served.
	Shuffle uint64
}

// Gen3x2 is a link of the third generation with two lanes, as embedded endpoints
// have it, with a DMA engine of four channels.
var Gen3x2 = Link{
	Channels: 4, Bandwidth: 2 << 30, RoundTrip: 1500 * time.Nanosecond,
	Segment: 4096, Boundary: 4096, Reads: 8,
}

// Of the link's packets: bytes that one carries at most.
const (
	maxPayload = 256 // of a write, or of a completion
	maxRead    = 512 // asked for by a read request
)

// Traffic counts what has happened on a link.
type Traffic struct {
	Moves       int64 // that have ended
	Segments    int64 // they were cut into
	Reads       int64 // transfers beside moves, each waited for
	Writes      int64 // transfers beside moves, posted
	Interrupts  int64
	FromHost    int64 // bytes, moves and transfers together
	ToHost      int64
	Packets     int64         // requests, completions with data, interrupts
	MostMoves   int           // in flight at one time
	MovesByTime time.Duration // the sum of the times that moves were in flight
	BusyTime    time.Duration // while at least one was
	WaitTime    time.Duration // that Reads were waited for
}

// packets returns how many packets carry n bytes at an address.
func packets(write bool, addr uint64, n int) int64 {
	blocks := func(size uint64) int64 {
		return int64((addr+uint64(n)-1)/size-addr/size) + 1
	}
	if write {
		return blocks(maxPayload)
	}
	return blocks(maxRead) + blocks(maxPayload)
}
