// Package blkio holds the operations of block I/O that Go cannot express without
// unsafe: looking at, cutting and copying vectors of memory that is not Go's, the vectored
// system calls over them, and the ioctls that take a range.
//
// It stands beside io_uring, for what has no io_uring operation and for kernels
// that refuse it. It keeps nothing, allocates nothing, and retries nothing.
package blkio

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxVec is the largest number of vectors that the kernel takes at once
// (UIO_MAXIOV).
const MaxVec = 1024

// Shape describes vec: the sum of its lengths in bytes, and the bitwise or of
// all addresses and of all lengths, against which an alignment can be tested.
// The sum is negative if it does not fit.
func Shape(vec []unix.Iovec) (total int64, addrs, lengths uint64) {
	for i := range vec {
		n := vec[i].Len
		addrs |= uint64(uintptr(unsafe.Pointer(vec[i].Base)))
		lengths |= n
		if total += int64(n); int64(n) < 0 || total < 0 {
			return -1, addrs, lengths
		}
	}
	return total, addrs, lengths
}

// Skip returns vec without its first n bytes. Entries that are gone entirely are
// cut off; if one is left in part, the rest is copied to buf (grown if needed),
// so that vec itself is never written. It returns what is left and buf.
func Skip(vec, buf []unix.Iovec, n int64) (left, grown []unix.Iovec) {
	for len(vec) > 0 && n >= int64(vec[0].Len) {
		n -= int64(vec[0].Len)
		vec = vec[1:]
	}
	if n == 0 || len(vec) == 0 {
		return vec, buf
	}
	buf = append(buf[:0], vec...)
	buf[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(buf[0].Base), n))
	buf[0].Len -= uint64(n)
	return buf, buf
}

// Clear zeroes the memory that vec lists. A fault in it panics, or is caught by
// shm.Guard.
func Clear(vec []unix.Iovec) {
	for i := range vec {
		clear(unsafe.Slice(vec[i].Base, vec[i].Len))
	}
}

// Preadv is preadv2(2) at byte offset off (-1: the file's own position).
func Preadv(fd int, vec []unix.Iovec, off int64, flags uint32) (int64, unix.Errno) {
	return transfer(unix.SYS_PREADV2, fd, vec, off, flags)
}

// Pwritev is pwritev2(2) at byte offset off.
func Pwritev(fd int, vec []unix.Iovec, off int64, flags uint32) (int64, unix.Errno) {
	return transfer(unix.SYS_PWRITEV2, fd, vec, off, flags)
}

// transfer passes the offset as the low half of two words; on 64-bit machines
// the kernel shifts the high half out.
func transfer(call uintptr, fd int, vec []unix.Iovec, off int64, flags uint32) (int64, unix.Errno) {
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(vec))),
		uintptr(len(vec)), uintptr(off), 0, uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int64(n), 0
}

// Range issues an ioctl that takes {offset, length} in bytes: BLKDISCARD,
// BLKZEROOUT or BLKSECDISCARD.
func Range(fd int, req uint, off, length int64) unix.Errno {
	arg := [2]uint64{uint64(off), uint64(length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(unsafe.Pointer(&arg)))
	return errno
}
