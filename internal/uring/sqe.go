package uring

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// File names the file of an operation: a descriptor, or a slot of the table that
// RegisterFiles has set up.
type File struct {
	fd    int32
	flags uint8
}

// FD is a plain descriptor.
func FD(fd int) File { return File{fd: int32(fd)} }

// Slot is the i-th registered file, which saves the kernel a reference count.
func Slot(i int) File { return File{fd: int32(i), flags: sqeFixedFile} }

// Nop completes with 0.
func (s *SQE) Nop(userData uint64) { *s = SQE{opcode: OpNop, fd: -1, userData: userData} }

// Read reads into vec, at off in bytes, with the RWF_ flags. The result is the
// number of bytes, which may be short. The slice itself may be reused once the
// entry is submitted; the memory it lists belongs to the kernel until completion.
func (s *SQE) Read(f File, vec []unix.Iovec, off int64, flags uint32, userData uint64) {
	s.transfer(OpRead, OpReadv, f, vec, off, flags, userData)
}

// Write writes from vec, at off in bytes, with the RWF_ flags. See Read.
func (s *SQE) Write(f File, vec []unix.Iovec, off int64, flags uint32, userData uint64) {
	s.transfer(OpWrite, OpWritev, f, vec, off, flags, userData)
}

// transfer takes the operation without a vector where there is one range only:
// the kernel then has nothing to import.
func (s *SQE) transfer(one, many Op, f File, vec []unix.Iovec, off int64, flags uint32, userData uint64) {
	*s = SQE{opcode: many, flags: f.flags, fd: f.fd, off: uint64(off), opFlags: flags, userData: userData}
	if len(vec) == 1 && vec[0].Len <= 1<<30 {
		s.opcode = one
		s.addr = uint64(uintptr(unsafe.Pointer(vec[0].Base)))
		s.len = uint32(vec[0].Len)
		return
	}
	s.addr = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(vec))))
	s.len = uint32(len(vec))
}

// InBuffer says that the memory of the Read or Write that was prepared lies in the
// registered buffer i, as Ring.Buffer has it, which saves the kernel looking its pages
// up.
func (s *SQE) InBuffer(i int) {
	switch s.opcode {
	case OpRead:
		s.opcode = OpReadFixed
	case OpWrite:
		s.opcode = OpWriteFixed
	case OpReadv:
		s.opcode = OpReadvFixed
	case OpWritev:
		s.opcode = OpWritevFixed
	default:
		return
	}
	s.buffer = uint16(i)
}

// Datasync makes what was written to the file, and what is needed to find it,
// stable (fdatasync).
func (s *SQE) Datasync(f File, userData uint64) {
	*s = SQE{opcode: OpFsync, flags: f.flags, fd: f.fd, opFlags: fsyncDatasync, userData: userData}
}

// Fallocate is fallocate(2) with the FALLOC_FL_ mode, offset and length in bytes.
func (s *SQE) Fallocate(f File, mode uint32, off, length int64, userData uint64) {
	*s = SQE{opcode: OpFallocate, flags: f.flags, fd: f.fd, off: uint64(off), addr: uint64(length), len: mode, userData: userData}
}

// Poll completes when one of the events (unix.POLLIN, …) is there. With multi it
// goes on to complete, as long as its completions say More.
func (s *SQE) Poll(f File, events uint32, multi bool, userData uint64) {
	*s = SQE{opcode: OpPollAdd, flags: f.flags, fd: f.fd, opFlags: events, userData: userData}
	if multi {
		s.len = pollAddMulti
	}
}

// Cancel tries to cancel the operation that was submitted with target. That one
// completes in any case, with ECANCELED if this came in time.
func (s *SQE) Cancel(target, userData uint64) {
	*s = SQE{opcode: OpAsyncCancel, fd: -1, addr: target, userData: userData}
}

// Command is a command of the file's own driver (IORING_OP_URING_CMD), with its
// number and its 16 bytes, which are copied.
func (s *SQE) Command(f File, number uint32, command [2]uint64, userData uint64) {
	*s = SQE{
		opcode: OpCommand, flags: f.flags, fd: f.fd, off: uint64(number), command: command, userData: userData,
	}
}
