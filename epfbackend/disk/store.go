package disk

import "golang.org/x/sys/unix"

// Op is a kind of operation.
type Op uint8

// The operations.
const (
	Read        Op = iota
	Write          // see IO.Durable
	Flush          // all writes that completed before it started are on stable storage
	Discard        // the range's content no longer matters
	WriteZeroes    // the range reads as zeroes; see IO.Unmap
	SecureErase    // the range's content, and all copies of it, are gone
)

// IO is one operation. Its owner allocates it once and uses it again and again;
// from Engine.Start until Engine.Wait returns it, it belongs to the engine. It
// must not be copied, nor shared between engines.
type IO struct {
	Tag    int // the owner's, to tell its IOs apart; the engine does not look at it
	Op     Op
	Offset int64 // in bytes
	Length int64 // in bytes; for Read and Write the sum of Iov; ignored by Flush

	// Iov is the memory of a Read or Write, lent until the IO is done. It may be
	// memory of the guest. Neither it nor the slice is changed except for the
	// memory itself by a Read.
	Iov []unix.Iovec

	// Durable asks that the effect of a Write, WriteZeroes, Discard or SecureErase
	// is on stable storage before it is done.
	Durable bool

	// Unmap allows WriteZeroes to give the space back.
	Unmap bool

	// Err is the result: nil, or a unix.Errno. EROFS: the disk was opened
	// read-only. EOPNOTSUPP: the disk cannot do this. EIO also stands for a range
	// that is not (or no longer) on the disk, EINVAL for an Iov that does not add
	// up to Length or a SecureErase that is not made of the disk's own blocks,
	// EBUSY for more operations than the engine was made for. EFAULT: the memory is
	// gone. ECANCELED: the engine was closed over a long Discard, WriteZeroes or
	// SecureErase.
	Err error

	step  step         // the system call that is in flight
	moved int64        // bytes that are done
	left  []unix.Iovec // what is left of Iov
	cut   []unix.Iovec // backs left after a transfer that stopped inside a vector
	lone  [1]unix.Iovec
	way   way // how WriteZeroes is being tried
	tries int // that were fruitless since the last progress
	slot  uint32
	job   *job // that it is done by, or a part of; block size emulation only
	span  span // that it modifies; block size emulation only
}

// Engine runs operations on a Store for one worker: one goroutine, locked to its
// OS thread, makes all calls.
type Engine interface {
	// Start queues io. It never waits for the disk. At most depth operations may
	// be unfinished.
	Start(io *IO)

	// Wait hands what was started to the kernel and returns what is done, in any
	// order. With block, it sleeps until something is done or a bell rings.
	// rung reports that the doorbell has rung, and has been drained; what rings
	// while the engine does not sleep may be found only by the next Wait that
	// would. done is valid until the next Wait. An error means that the engine is
	// broken: nothing more will complete.
	Wait(block bool) (done []*IO, rung bool, err error)

	// Listen has bell end a sleep of Wait, too: an eventfd that nobody else reads and
	// that outlives the engine. Wait drains it and does not tell, for it stands for what
	// its caller looks at anyway. It may be called once, before the first Wait.
	Listen(bell int)

	// Ready reports whether Wait would find something without sleeping. It makes
	// no system call. A no is right; a yes may be wrong until something completes.
	Ready() bool

	// Pin names the memory that operations use again and again, and nothing else: what
	// was named before no longer counts. Where the engine can, the pages are looked up
	// now and not for each operation, and stay as they are until then, whatever becomes
	// of the mapping. So nothing else may be mapped there meanwhile, and pages taken out
	// of the file behind it are not seen to be gone. Nothing may be unfinished that uses
	// memory named before. An error says what could not be pinned; operations on it work
	// all the same.
	Pin(memory ...[]byte) error

	// Name returns "io_uring", "plain" or "null".
	Name() string

	// Close waits for what is in flight (cutting short long operations over a
	// range) and gives everything up. Operations that were not returned by Wait
	// are forgotten. It may be called again; nothing else may.
	Close() error
}

// EngineKind selects an engine.
type EngineKind uint8

// Kinds of engine.
const (
	Auto  EngineKind = iota // io_uring, or plain where the kernel refuses it
	URing                   // io_uring or an error
	Plain                   // preadv, pwritev and their like on a few threads
)

// String returns the name that ParseEngineKind takes.
func (k EngineKind) String() string {
	switch k {
	case Auto:
		return "auto"
	case URing:
		return "io_uring"
	case Plain:
		return "plain"
	}
	return "unknown"
}

// ParseEngineKind is the inverse of String.
func ParseEngineKind(s string) (EngineKind, bool) {
	for k := Auto; k <= Plain; k++ {
		if k.String() == s {
			return k, true
		}
	}
	return Auto, false
}

// Store is one disk. Its methods may be called from any goroutine at any time
// until Close.
type Store interface {
	// Info returns what is known of the disk now.
	Info() Info

	// NewEngine makes an engine for at most depth unfinished operations (1 to
	// MaxDepth), which also listens to doorbell, an eventfd of the caller's that
	// nobody else reads and that outlives the engine. It must be called on the
	// goroutine that will use the engine.
	NewEngine(kind EngineKind, depth, doorbell int) (Engine, error)

	// Refresh looks at the size again, and reports whether it has changed.
	Refresh() (changed bool, err error)

	// Flush is the Flush operation, for when no engine is at hand.
	Flush() error

	// Close gives the disk up, after the last engine was closed. It may be called
	// again.
	Close() error
}

// MaxDepth is the largest number of unfinished operations of one engine.
const MaxDepth = 32768
