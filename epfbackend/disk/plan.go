package disk

import (
	"sync/atomic"

	"github.com/vblk-ep/vblk-ep/internal/blkio"
	"golang.org/x/sys/unix"
)

// call is a system call that an operation needs.
type call uint8

const (
	callRead call = iota
	callWrite
	callSync
	callFallocate
	callDiscard // from here on: without an io_uring operation
	callZeroOut
	callSecureErase
	callReadCopy // and from here on through a buffer
	callWriteCopy
)

// transfer says whether a call reads or writes.
func (c call) transfer() bool {
	return c <= callWrite || c >= callReadCopy
}

// step is one system call on the way of an IO.
type step struct {
	call   call
	direct bool         // by the descriptor that bypasses the page cache
	flags  uint32       // RWF_ for transfers, FALLOC_FL_ for fallocate
	off, n int64        // the range, in bytes
	vec    []unix.Iovec // transfers: its memory, at most blkio.MaxVec entries, without a copy
}

// way is a way to write zeroes. They are tried in this order, from the first
// that the operation allows.
type way uint8

const (
	wayPunch way = iota
	wayZeroRange
	wayZeroOut
	wayWrite
)

const (
	// rangeChunk bounds one system call on a range, so that an engine can be
	// closed between two. Chunks end at multiples of it, and so never cut a unit
	// that a device discards as a whole.
	rangeChunk = 256 << 20

	// maxTries bounds how often a system call is repeated that the kernel did not
	// refuse, but did not do either (EAGAIN, EINTR).
	maxTries = 100

	punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zeroRange = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
)

// target is what operations run on, shared by all engines of a disk.
type target struct {
	buffered int // holds the disk exclusively, and is what everything but transfers goes by
	direct   int // bypasses the page cache; -1 if there is none

	memMask, offMask uint64      // what must be zero in addresses and offsets for direct
	misfit           atomic.Bool // it was not enough: all goes by the page cache from then on
	block            bool        // a block device, not a file
	readOnly         bool
	size             atomic.Int64
	cannot           atomic.Uint32 // ways of writing zeroes that the disk has refused
}

// fd returns the descriptor for a step.
func (t *target) fd(s *step) int {
	if s.direct {
		return t.direct
	}
	return t.buffered
}

// begin starts io over. It reports whether there is a step to take; if not, the
// operation is done.
func (t *target) begin(io *IO) bool {
	io.Err, io.moved, io.tries = nil, 0, 0
	if io.Op == Flush {
		io.step = step{call: callSync}
		return !t.readOnly
	}
	size := t.size.Load()
	switch {
	case io.Op > SecureErase:
		return io.fail(unix.EOPNOTSUPP)
	case io.Op != Read && t.readOnly:
		return io.fail(unix.EROFS)
	case io.Offset < 0 || io.Length < 0 || io.Offset > size || io.Length > size-io.Offset:
		return io.fail(unix.EIO)
	case io.Length == 0:
		return false
	}
	switch io.Op {
	case Read, Write:
		io.left = io.Iov
		io.step.vec = nil
		if total, _, _ := blkio.Shape(io.Iov); total != io.Length {
			return io.fail(unix.EINVAL)
		}
	case WriteZeroes:
		io.way = wayZeroRange
		if io.Unmap {
			io.way = wayPunch
		}
	}
	return t.plan(io)
}

func (io *IO) fail(errno unix.Errno) bool {
	io.Err = errno
	return false
}

// plan sets the next step. It reports whether there is one.
func (t *target) plan(io *IO) bool {
	off, left := io.Offset+io.moved, io.Length-io.moved
	if left == 0 {
		if !io.Durable || io.Op == Read || io.Op == Write || io.step.call == callSync {
			return false
		}
		io.step = step{call: callSync}
		return true
	}
	chunk := min(left, rangeChunk-off%rangeChunk)
	switch io.Op {
	case Read:
		t.transfer(io, callRead, io.left, off)
	case Write:
		t.transfer(io, callWrite, io.left, off)
	case Discard:
		io.step = step{call: callDiscard, off: off, n: chunk}
		if !t.block {
			io.step.call, io.step.flags = callFallocate, punchHole
		}
	case SecureErase:
		if !t.block {
			return io.fail(unix.EOPNOTSUPP)
		}
		io.step = step{call: callSecureErase, off: off, n: chunk}
	case WriteZeroes:
		t.planZeroes(io, off, chunk)
	}
	return true
}

func (t *target) planZeroes(io *IO, off, n int64) {
	for t.cannot.Load()>>io.way&1 != 0 || io.way == wayZeroOut && !t.block {
		io.way++
	}
	switch io.way {
	case wayPunch:
		io.step = step{call: callFallocate, flags: punchHole, off: off, n: n}
	case wayZeroRange:
		io.step = step{call: callFallocate, flags: zeroRange, off: off, n: n}
	case wayZeroOut:
		io.step = step{call: callZeroOut, off: off, n: n}
	case wayWrite:
		t.transfer(io, callWrite, io.zeroes(n), off)
	}
}

// transfer plans to read or write as much of vec as one call takes. Where transfers
// bypass the page cache, none takes it: what the kernel then finds in both places at
// once it may lose, or fail the next flush for. So memory that is not aligned for that
// is copied.
func (t *target) transfer(io *IO, c call, vec []unix.Iovec, off int64) {
	cut := vec[:min(len(vec), blkio.MaxVec)]
	n, addrs, lengths := blkio.Shape(cut)
	io.step = step{call: c, off: off, n: n, vec: cut}
	if c == callWrite && io.Durable {
		io.step.flags = unix.RWF_DSYNC
	}
	if t.direct < 0 || t.misfit.Load() {
		return
	}
	io.step.direct = true
	if addrs&t.memMask != 0 || lengths&t.offMask != 0 {
		io.step.call += callReadCopy - callRead
		io.step.vec, io.step.n = vec, min(io.Length-io.moved, copySize)
	}
}

// finish takes the result of the step. It reports whether there is another one
// to take; if not, the operation is done.
func (t *target) finish(io *IO, n int64, errno unix.Errno) bool {
	if errno != 0 {
		return t.mend(io, errno)
	}
	io.tries = 0
	switch io.step.call {
	case callSync:
		return false
	case callRead, callWrite, callReadCopy, callWriteCopy:
		if n <= 0 || n > io.step.n {
			return io.fail(unix.EIO) // the end of the disk, which begin has excluded: it shrank
		}
		io.moved += n
		if io.Op != WriteZeroes && io.moved < io.Length {
			io.left, io.cut = blkio.Skip(io.left, io.cut, n)
		}
	default:
		io.moved += io.step.n
	}
	return t.plan(io)
}

// mend decides what follows a step that failed: the same again, another way, or
// the end.
func (t *target) mend(io *IO, errno unix.Errno) bool {
	switch {
	case errno == unix.EINTR || errno == unix.EAGAIN:
		if io.tries++; io.tries < maxTries {
			return true
		}
	case errno == unix.EINVAL && io.step.call.transfer() && io.step.direct:
		t.misfit.Store(true) // it wants more alignment than it told
		return t.plan(io)
	case io.Op == WriteZeroes && io.way < wayWrite && io.step.call != callSync && unsupported(errno):
		t.cannot.Or(1 << io.way)
		io.way++
		return t.plan(io)
	case io.Op == WriteZeroes && io.way < wayWrite && errno == unix.EINVAL:
		io.way = wayWrite // not aligned to what the disk can zero
		return t.plan(io)
	}
	if unsupported(errno) {
		errno = unix.EOPNOTSUPP
	}
	return io.fail(errno)
}

// unsupported reports whether errno says that a call, as such, is not there.
func unsupported(errno unix.Errno) bool {
	switch errno {
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.ENOTTY:
		return true
	}
	return false
}

// long reports whether what is left of io may be abandoned between two steps.
func (io *IO) long() bool { return io.Op > Flush && io.step.call != callSync }
