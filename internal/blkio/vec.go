package blkio

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Cut returns the n bytes of vec that begin off bytes into it, or as many as there
// are. The entries are copied to buf (grown if needed), vec is never written.
func Cut(vec, buf []unix.Iovec, off, n int64) []unix.Iovec {
	buf = buf[:0]
	for i := range vec {
		if n == 0 {
			break
		}
		size := int64(vec[i].Len)
		if off >= size {
			off -= size
			continue
		}
		part := unix.Iovec{Base: (*byte)(unsafe.Add(unsafe.Pointer(vec[i].Base), off)), Len: uint64(min(size-off, n))}
		buf = append(buf, part)
		n -= int64(part.Len)
		off = 0
	}
	return buf
}

// Gather copies to p the memory that begins off bytes into vec, and returns how
// much there was. A fault in that memory panics, or is caught by shm.Guard.
func Gather(p []byte, vec []unix.Iovec, off int64) int {
	return each(p, vec, off, func(p, memory []byte) { copy(p, memory) })
}

// Scatter copies p to the memory that begins off bytes into vec, as far as there
// is room, and returns how much there was. Faults are as with Gather.
func Scatter(vec []unix.Iovec, off int64, p []byte) int {
	return each(p, vec, off, func(p, memory []byte) { copy(memory, p) })
}

func each(p []byte, vec []unix.Iovec, off int64, move func(p, memory []byte)) (moved int) {
	for i := range vec {
		if moved == len(p) {
			break
		}
		size := int64(vec[i].Len)
		if off >= size {
			off -= size
			continue
		}
		memory := unsafe.Slice(vec[i].Base, vec[i].Len)[off:]
		n := min(len(memory), len(p)-moved)
		move(p[moved:moved+n], memory[:n])
		moved, off = moved+n, 0
	}
	return moved
}
