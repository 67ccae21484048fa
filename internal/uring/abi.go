package uring

import "unsafe"

// The kernel's interface, include/uapi/linux/io_uring.h. Values are in the
// byte order of the machine: this is memory shared with our own kernel, not a
// wire format.

// Op is an operation code.
type Op uint8

// The operations that a Ring can prepare.
const (
	OpNop         Op = 0
	OpReadv       Op = 1
	OpWritev      Op = 2
	OpFsync       Op = 3
	OpReadFixed   Op = 4
	OpWriteFixed  Op = 5
	OpPollAdd     Op = 6
	OpAsyncCancel Op = 14
	OpFallocate   Op = 17
	OpRead        Op = 22
	OpWrite       Op = 23
	OpCommand     Op = 46
	OpReadvFixed  Op = 60 // (6.15)
	OpWritevFixed Op = 61
)

// SetupFlags are the modes of a ring, IORING_SETUP_*.
type SetupFlags uint32

// Modes that New asks for, where the kernel has them.
const (
	SetupCQSize       SetupFlags = 1 << 3  // the size of the completion queue is given
	SetupClamp        SetupFlags = 1 << 4  // sizes beyond the limit are clamped
	SetupSubmitAll    SetupFlags = 1 << 7  // one bad entry does not stop a batch (5.18)
	SetupCoopTaskrun  SetupFlags = 1 << 8  // no interrupt to run completions (5.19)
	SetupTaskrunFlag  SetupFlags = 1 << 9  // say when completions wait to be run (5.19)
	SetupSingleIssuer SetupFlags = 1 << 12 // one thread submits (6.0)
	SetupDeferTaskrun SetupFlags = 1 << 13 // completions run when we ask for them (6.1)
)

// Features are what the kernel can, IORING_FEAT_*.
type Features uint32

// Features that a Ring cannot do without.
const (
	FeatSingleMmap   Features = 1 << 0  // both queues in one mapping (5.4)
	FeatNoDrop       Features = 1 << 1  // completions that do not fit are kept (5.5)
	FeatSubmitStable Features = 1 << 2  // vectors may go once they are submitted (5.5)
	FeatRsrcTags     Features = 1 << 10 // stands for 5.13: multishot poll
)

const needFeatures = FeatSingleMmap | FeatNoDrop | FeatSubmitStable | FeatRsrcTags

const (
	enterGetEvents      = 1 << 0
	enterRegisteredRing = 1 << 4

	sqCQOverflow = 1 << 1
	sqTaskrun    = 1 << 2

	offSQRing = 0
	offSQEs   = 0x10000000

	registerFiles   = 2
	unregisterFiles = 3
	registerEventfd = 4
	registerProbe   = 8

	registerBuffers2      = 15 // sparse: 5.19
	registerBuffersUpdate = 16
	rsrcSparse            = 1 << 0

	registerRingFDs   = 20 // (5.18)
	unregisterRingFDs = 21
	anySlot           = ^uint32(0)

	sqeFixedFile = 1 << 0

	fsyncDatasync = 1 << 0
	pollAddMulti  = 1 << 0
	opSupported   = 1 << 0
	cqeMore       = 1 << 1

	maxProbeOps = 64
	probeHeader = 16
	probeEntry  = 8
	sqeSize     = 64
	cqeSize     = 16
)

// params is struct io_uring_params. All from sqHead on are offsets into the
// mapping of the queues.
type params struct {
	sqEntries, cqEntries, flags       uint32
	_, _                              uint32
	features                          uint32
	_                                 [4]uint32
	sqHead, sqTail, sqMask, sqEntryNo uint32
	sqFlags, sqDropped, sqArray       uint32
	_                                 [3]uint32
	cqHead, cqTail, cqMask, cqEntryNo uint32
	cqOverflow, cqCQEs, cqFlags       uint32
	_                                 [3]uint32
}

// rsrcUpdate is struct io_uring_rsrc_update.
type rsrcUpdate struct {
	offset, _ uint32
	data      uint64
}

// rsrcRegister is struct io_uring_rsrc_register.
type rsrcRegister struct {
	nr, flags uint32
	_         uint64
	data      uint64
	tags      uint64
}

// rsrcUpdate2 is struct io_uring_rsrc_update2.
type rsrcUpdate2 struct {
	offset, _ uint32
	data      unsafe.Pointer
	tags      uint64
	nr, _     uint32
}

// SQE is one submission queue entry, to be filled by exactly one of its
// preparing methods.
type SQE struct {
	opcode   Op
	flags    uint8
	_        uint16
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	opFlags  uint32
	userData uint64
	buffer   uint16
	_        [3]uint16
	command  [2]uint64
}

// CQE is one completion.
type CQE struct {
	UserData uint64 // as given with the submission
	Res      int32  // ≥ 0: the result; < 0: a negated errno
	Flags    uint32
}

// More reports whether the operation that completed will complete again
// (multishot).
func (c CQE) More() bool { return c.Flags&cqeMore != 0 }
