package uring

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Ring is an io_uring instance. See the package for who may use it, and New.
type Ring struct {
	fd    int
	setup SetupFlags
	ops   uint64
	files bool

	buffers    []buffer // registered
	lastBuffer int      // that was found
	filled     int      // buffers, the first of the table

	// What enter names the ring by: fd, or a slot of the issuer's own table.
	enterFD    int
	enterFlags uintptr

	// Submission: we own the tail, the kernel the head. next runs ahead of the
	// published tail by what was prepared and not yet submitted.
	sqHead, sqTail, sqFlags *uint32
	sqMask, next            uint32
	sqes                    []SQE

	// Completion: the kernel owns the tail, we the head.
	cqHead, cqTail *uint32
	cqMask         uint32
	cqes           []CQE

	ringMem, sqeMem []byte
}

// Setup returns the modes in force.
func (r *Ring) Setup() SetupFlags { return r.setup }

// Supports reports whether the kernel knows all of the operations.
func (r *Ring) Supports(ops ...Op) bool {
	for _, op := range ops {
		if op >= maxProbeOps || r.ops>>op&1 == 0 {
			return false
		}
	}
	return true
}

// Next returns the next free entry, to be prepared before Next or Submit is
// called again, or nil when the queue is full and must be submitted first. The
// entry is stale: a preparing method sets all of it.
func (r *Ring) Next() *SQE {
	if r.next-atomic.LoadUint32(r.sqHead) > r.sqMask {
		return nil
	}
	s := &r.sqes[r.next&r.sqMask]
	r.next++
	return s
}

// Prepared returns the number of entries that wait for submission.
func (r *Ring) Prepared() int { return int(r.next - atomic.LoadUint32(r.sqHead)) }

// Ready returns the number of completions that can be reaped without a system
// call.
func (r *Ring) Ready() int { return int(atomic.LoadUint32(r.cqTail) - *r.cqHead) }

// Due reports whether the kernel holds completions that it will only put into
// the queue when asked to: Submit does.
func (r *Ring) Due() bool {
	return atomic.LoadUint32(r.sqFlags)&(sqCQOverflow|sqTaskrun) != 0
}

// Submit hands what was prepared to the kernel, and lets it post the completions
// that are due. It does not wait for any. EAGAIN and EBUSY say that the kernel is
// short of memory or that completions must be reaped first; what was not taken
// stays prepared.
func (r *Ring) Submit() error {
	if r.Prepared() == 0 && !r.Due() {
		return nil
	}
	return r.enter(0)
}

// SubmitAndWait is Submit, and sleeps until n completions are ready, or the
// completion queue is full. Signals do not end the sleep.
func (r *Ring) SubmitAndWait(n int) error {
	n = min(n, len(r.cqes))
	if r.Ready() >= n {
		return r.Submit()
	}
	return r.enter(n)
}

// enter goes through the scheduler-aware system call also when it will not wait:
// a submission may copy, and a thread that the scheduler takes for running Go
// code would hold up a collection for so long.
func (r *Ring) enter(wait int) error {
	atomic.StoreUint32(r.sqTail, r.next)
	for {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.enterFD),
			uintptr(r.Prepared()), uintptr(wait), r.enterFlags, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return errno
		}
		// A signal, or an entry that the kernel stopped at, may have cut it short.
		if r.Prepared() == 0 && r.Ready() >= wait {
			return nil
		}
	}
}

// Reap moves up to len(out) completions to out and returns how many. It makes no
// system call: when it returns 0, Due tells whether one would bring more.
func (r *Ring) Reap(out []CQE) int {
	head := *r.cqHead
	n := min(int(atomic.LoadUint32(r.cqTail)-head), len(out))
	for i := range n {
		out[i] = r.cqes[(head+uint32(i))&r.cqMask]
	}
	if n > 0 {
		atomic.StoreUint32(r.cqHead, head+uint32(n))
	}
	return n
}
