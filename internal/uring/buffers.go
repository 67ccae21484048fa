package uring

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxBuffer is the most that the kernel takes as one registered buffer, in bytes.
const maxBuffer = 1 << 30

// ErrBuffers reports more memory than the table of registered buffers has room for.
var ErrBuffers = errors.New("no room for registered buffers")

// buffer is an entry of the table; of length 0 it is empty.
type buffer struct{ base, length uintptr }

// RegisterBuffers makes a table of n registered buffers, all of them empty. Kernels
// before 5.19 have none: EINVAL.
func (r *Ring) RegisterBuffers(n int) error {
	u := rsrcRegister{nr: uint32(n), flags: rsrcSparse}
	if err := r.register(registerBuffers2, unsafe.Pointer(&u), int(unsafe.Sizeof(u))); err != nil {
		return fmt.Errorf("register buffers with io_uring: %w", err)
	}
	r.buffers = make([]buffer, n)
	return nil
}

// SetBuffers fills the table with these ranges of memory, and nothing else: what was
// there before is let go of. The kernel looks up the pages of each once, allocates
// those that are not there, and holds all of them until they are let go of, whatever
// becomes of the mapping: a page that is taken out of the file behind it stays what an
// operation in the range means. So memory has to be let go of before something else is
// mapped at its place.
//
// What the kernel refuses is left out, and the first error returned: EFAULT for memory
// that cannot be written or not be held, ENOMEM beyond RLIMIT_MEMLOCK, ErrBuffers.
func (r *Ring) SetBuffers(memory ...[]byte) error {
	var first error
	r.filled = 0
	for i := range r.buffers {
		if r.buffers[i].length > 0 {
			first = errors.Join(first, r.setBuffer(i, nil))
		}
	}
	i := 0
	for _, m := range memory {
		for len(m) > 0 {
			if i == len(r.buffers) {
				return errors.Join(first, ErrBuffers)
			}
			part := m[:min(len(m), maxBuffer)]
			m = m[len(part):]
			switch err := r.setBuffer(i, part); {
			case err == nil:
				i++
				r.filled = i
			case first == nil:
				first = err
			}
		}
	}
	return first
}

func (r *Ring) setBuffer(i int, memory []byte) error {
	r.buffers[i], r.lastBuffer = buffer{}, 0
	vec := unix.Iovec{Base: unsafe.SliceData(memory), Len: uint64(len(memory))}
	u := rsrcUpdate2{offset: uint32(i), data: unsafe.Pointer(&vec), nr: 1}
	n, _, errno := r.call(registerBuffersUpdate, unsafe.Pointer(&u), int(unsafe.Sizeof(u)))
	if errno != 0 {
		return fmt.Errorf("register %d bytes with io_uring: %w", len(memory), errno)
	}
	if n == 1 && len(memory) > 0 {
		r.buffers[i] = buffer{uintptr(unsafe.Pointer(vec.Base)), uintptr(len(memory))}
	}
	return nil
}

// Buffer returns which registered buffer all of vec lies in, if an operation on it can
// be told: see SQE.InBuffer.
func (r *Ring) Buffer(vec []unix.Iovec) (i int, ok bool) {
	if r.filled == 0 || len(vec) == 0 || len(vec) > 1 && !r.Supports(OpReadvFixed, OpWritevFixed) {
		return 0, false
	}
	i = r.lastBuffer
	if !r.buffers[i].holds(&vec[0]) {
		if i = r.find(&vec[0]); i < 0 {
			return 0, false
		}
		r.lastBuffer = i
	}
	b := r.buffers[i]
	for n := 1; n < len(vec); n++ {
		if !b.holds(&vec[n]) {
			return 0, false
		}
	}
	return i, true
}

func (r *Ring) find(v *unix.Iovec) int {
	for i := range r.filled {
		if r.buffers[i].holds(v) {
			return i
		}
	}
	return -1
}

func (b buffer) holds(v *unix.Iovec) bool {
	off, n := uintptr(unsafe.Pointer(v.Base))-b.base, uintptr(v.Len)
	return off < b.length && n <= b.length-off
}
