package vring

// Memory is host memory, addressed as the host's driver addresses it (bus
// addresses). An endpoint controller implements it.
//
// Transfers (ReadAt, WriteAt, and accesses to lent memory) take effect in the
// order in which they are made. A transfer of two or four bytes at a multiple of
// its length is a single access; a longer one may be seen half done. What a
// method returns as an error for an address that nobody mapped, or not for that
// access, wraps ErrUnmapped.
type Memory interface {
	// Lend returns the longest directly accessible prefix of the n bytes at
	// addr. It is empty, without an error, where memory exists but must be
	// reached by transfers. What is lent stays valid until the owner of the
	// memory says otherwise; the queue then has to Resolve.
	Lend(addr uint64, n int, access Access) ([]byte, error)

	// ReadAt copies the len(p) bytes at addr to p.
	ReadAt(p []byte, addr uint64) error

	// WriteAt copies p to addr.
	WriteAt(p []byte, addr uint64) error
}

// Poster is a Memory that can hold writes back, to make them together with what comes
// next.
type Poster interface {
	// Post copies p, to be written to addr before the next transfer (ReadAt, WriteAt) takes
	// effect; accesses to lent memory do not wait for it. If that fails, all that was
	// posted may be there or not, and is written again before the transfer after it.
	Post(p []byte, addr uint64) error
}

// Access says what the device is going to do with memory.
type Access uint8

// Accesses.
const (
	Read Access = 1 << iota
	Write
)

// Segment is a contiguous part of a buffer in host memory. Its end does not wrap
// around the address space; whether it is mapped is not known.
type Segment struct {
	Addr uint64
	Len  uint32 // in bytes, never 0
}

// Chain is one descriptor chain: a buffer that the driver made available. Its
// storage grows to the longest chain met and is reused by Next, so a Chain
// belongs to whoever called Next until it is pushed.
type Chain struct {
	// Head identifies the chain to the driver: the number of its first descriptor
	// in a split virtqueue; in a packed one the buffer ID, which can be any number.
	Head uint16
	// Readable and Writable are the parts of the buffer that the device may read
	// and write, in order.
	Readable, Writable []Segment
	// ReadableLen and WritableLen are the sums of their lengths in bytes.
	ReadableLen, WritableLen uint64

	// Table is set, of a Len above 0, while the chain lacks what stands in this
	// indirect table: see Config.Deferred.
	Table Segment

	segments []Segment // Readable, then Writable
	readable int       // how many of them are readable
	count    int       // descriptors met, empty ones included
	slots    int       // descriptors of a packed ring that it takes, until it is pushed
	entry    uint16    // of the journal, if there is one
}

func (c *Chain) reset(head uint16) {
	*c = Chain{Head: head, segments: c.segments[:0]}
}

func (c *Chain) split() {
	c.Readable = c.segments[:c.readable:c.readable]
	c.Writable = c.segments[c.readable:]
}

// Queue is one virtqueue as its worker uses it, whatever its layout. A Queue
// belongs to one goroutine.
//
// Errors are of two kinds. What IsMalformed reports is the driver's fault; if
// Next returned no chain with it, the queue has stopped: chains in flight can
// still be pushed and published, but nothing more is fetched until the driver
// resets the queue. Every other error comes from Memory. It changes nothing, and
// the call can be repeated after Resolve.
type Queue interface {
	// Next fetches the next available chain into c and reports whether there
	// was one. Each chain that it reports is in flight until it is pushed.
	//
	// With ErrEmpty and ErrLength there is a chain: the ring is sound, but the
	// chain's content must not be acted upon. It has to be pushed all the same.
	Next(c *Chain) (ok bool, err error)

	// Available reports whether Next would fetch a chain, or find something wrong
	// with the ring. It is for who looks again and again instead of asking to be
	// notified.
	Available() (more bool, err error)

	// Complete goes on with a chain that Next has reported with a Table, given what
	// stands there. It returns what Next returns for other chains; errors are the
	// driver's. A chain that it does not report stays in flight for good.
	Complete(c *Chain, table []byte) (ok bool, err error)

	// Known reports whether Next would fetch a chain that was seen to be available
	// before, without a look at host memory for new ones.
	Known() bool

	// Push adds c, in flight, to the batch of used chains. written is how many
	// bytes the device wrote, from the start of the writable part. The driver
	// does not see the batch before Publish. c can be reused at once.
	//
	// To push more than was in flight is a bug of the caller and panics.
	Push(c *Chain, written uint32)

	// Publish makes the batch visible to the driver, and reports whether the
	// driver wants to be interrupted for it. After an error the batch, or the
	// decision about the interrupt, is still to be published.
	Publish() (interrupt bool, err error)

	// EnableNotifications asks the driver to notify the device of the next
	// chain, and reports whether something became available meanwhile: then
	// there may be no notification, and the caller has to go on with Next.
	EnableNotifications() (more bool, err error)

	// DisableNotifications tells the driver that notifications are not needed.
	// Some may still come.
	DisableNotifications() error

	// Resolve finds the ring in host memory again after that has changed. The
	// ring's position and what is in flight or pushed are kept. After an error
	// nothing is accessed any more until a later Resolve succeeds.
	Resolve() error

	// InFlight returns how many chains were fetched and not yet pushed, at most
	// the queue size.
	InFlight() int

	// Inherited returns how many chains of another queue Next is still to return.
	Inherited() int
}

// MaxSize is the largest size of a queue (§2.7, §2.8).
const MaxSize = 32768

// Config says where a queue is and what was negotiated for it.
type Config struct {
	// Size is the number of descriptors, from 1 to MaxSize; in a split virtqueue a
	// power of two.
	Size int
	// Desc, Driver and Device are the bus addresses of the three areas (§2.6).
	// In a split virtqueue they are the descriptor table, the available ring and
	// the used ring, aligned to 16, 2 and 4 bytes; in a packed one the descriptor
	// ring, the driver and the device event suppression structure, aligned to 16,
	// 4 and 4 bytes.
	Desc, Driver, Device uint64
	// EventIdx and Indirect say that these features were negotiated.
	EventIdx, Indirect bool
	// MaxChain is how many descriptors one chain may have, indirect ones
	// included; Size if not positive. (A driver should stay below Size even with indirect
	// descriptors, but Linux takes the limits of the device instead.)
	MaxChain int
	// Deferred is the length in bytes up to which Next leaves it to its caller to
	// read an indirect table that cannot be lent, who can so read several at once.
	Deferred int
	// Start is the ring's position, 0 after a reset. In a split virtqueue it is the
	// available and used index of the first chain. In a packed one bits 0 to 14
	// are the first descriptor, and bit 15 is set where the wrap counters are 0.
	Start uint16

	// Journal, of JournalLen bytes at a multiple of 8, is memory that outlives the
	// process, where the queue notes what is in flight; nil for none. Resume says that
	// another queue of the same place and format has left it there, at whatever moment
	// it ended: then the queue goes on from there, whatever Start is. What that one had
	// in flight, and had not published, Next returns first, and the driver may not have
	// been told of what was published last.
	Journal []byte
	Resume  bool
}
