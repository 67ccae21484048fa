package uring

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrOld reports a kernel whose io_uring lacks something that a Ring cannot do
// without.
var ErrOld = errors.New("io_uring of this kernel is too old")

// ladder lists the modes that are tried, best first: each is refused with EINVAL
// by kernels that do not know one of its flags.
var ladder = []SetupFlags{
	SetupSubmitAll | SetupTaskrunFlag | SetupSingleIssuer | SetupDeferTaskrun,
	SetupSubmitAll | SetupTaskrunFlag | SetupCoopTaskrun,
	SetupSubmitAll,
	0,
}

// New sets up a ring for at least entries submissions between two calls of
// Submit, and cqEntries completions between two calls of Reap (more are kept by
// the kernel, but cost). It takes the best modes that the kernel grants. Where
// the kernel refuses io_uring, the error is ENOSYS, EPERM or ErrOld.
//
// The calling goroutine must be locked to its thread, and is the issuer from
// now on. The Ring must be closed.
func New(entries, cqEntries uint32) (*Ring, error) {
	var err error
	for _, flags := range ladder {
		var r *Ring
		if r, err = setup(entries, cqEntries, flags|SetupClamp|SetupCQSize); err == nil {
			return r, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return nil, err
}

func setup(entries, cqEntries uint32, flags SetupFlags) (*Ring, error) {
	p := params{cqEntries: cqEntries, flags: uint32(flags)}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("set up io_uring: %w", errno)
	}
	r := &Ring{fd: int(fd), setup: flags}
	if err := r.attach(&p); err != nil {
		r.Close()
		return nil, fmt.Errorf("set up io_uring: %w", err)
	}
	return r, nil
}

func (r *Ring) attach(p *params) (err error) {
	if missing := needFeatures &^ Features(p.features); missing != 0 {
		return fmt.Errorf("%w: features %#x are missing", ErrOld, uint32(missing))
	}
	ringLen := max(p.sqArray+p.sqEntries*4, p.cqCQEs+p.cqEntries*cqeSize)
	prot, flags := unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE
	if r.ringMem, err = unix.Mmap(r.fd, offSQRing, int(ringLen), prot, flags); err != nil {
		return err
	}
	if r.sqeMem, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*sqeSize, prot, flags); err != nil {
		return err
	}
	r.sqHead, r.sqTail = r.word(p.sqHead), r.word(p.sqTail)
	r.sqFlags = r.word(p.sqFlags)
	r.sqMask = p.sqEntries - 1
	r.sqes = unsafe.Slice((*SQE)(unsafe.Pointer(&r.sqeMem[0])), p.sqEntries)
	r.cqHead, r.cqTail = r.word(p.cqHead), r.word(p.cqTail)
	r.cqMask = p.cqEntries - 1
	r.cqes = unsafe.Slice((*CQE)(unsafe.Pointer(&r.ringMem[p.cqCQEs])), p.cqEntries)
	// Entry i of the array always names SQE i: nothing to write per submission.
	for i, a := uint32(0), unsafe.Slice(r.word(p.sqArray), p.sqEntries); i < p.sqEntries; i++ {
		a[i] = i
	}
	r.registerRing()
	return r.probe()
}

// registerRing makes the ring known to the thread that enters it, which saves the
// kernel a reference count each time. It works without, too.
func (r *Ring) registerRing() {
	r.enterFD, r.enterFlags = r.fd, enterGetEvents
	u := rsrcUpdate{offset: anySlot, data: uint64(r.fd)}
	if n, _, errno := r.call(registerRingFDs, unsafe.Pointer(&u), 1); errno == 0 && n == 1 {
		r.enterFD, r.enterFlags = int(u.offset), enterGetEvents|enterRegisteredRing
	}
}

func (r *Ring) unregisterRing() error {
	if r.enterFlags&enterRegisteredRing == 0 {
		return nil
	}
	u := rsrcUpdate{offset: uint32(r.enterFD)}
	return r.register(unregisterRingFDs, unsafe.Pointer(&u), 1)
}

func (r *Ring) word(off uint32) *uint32 {
	return (*uint32)(unsafe.Pointer(&r.ringMem[off]))
}

// probe asks which operations there are. Kernels without the question (before
// 5.6) are too old.
func (r *Ring) probe() error {
	var answer [probeHeader + maxProbeOps*probeEntry]byte
	if err := r.register(registerProbe, unsafe.Pointer(&answer[0]), maxProbeOps); err != nil {
		return fmt.Errorf("%w: %w", ErrOld, err)
	}
	for i := range min(int(answer[1]), maxProbeOps) {
		entry := answer[probeHeader+i*probeEntry:]
		if entry[2]&opSupported != 0 && entry[0] < maxProbeOps {
			r.ops |= 1 << entry[0]
		}
	}
	return nil
}

// RegisterFiles makes fds available as Slot(0), Slot(1), …. The ring holds the
// files open, whatever happens to the descriptors, until Close.
func (r *Ring) RegisterFiles(fds ...int) error {
	table := make([]int32, len(fds))
	for i, fd := range fds {
		table[i] = int32(fd)
	}
	err := r.register(registerFiles, unsafe.Pointer(unsafe.SliceData(table)), len(table))
	runtime.KeepAlive(table)
	if err != nil {
		return fmt.Errorf("register files with io_uring: %w", err)
	}
	r.files = true
	return nil
}

// RegisterEventfd has an eventfd signalled whenever there is something to reap, or to
// be submitted for (Due). It stays the caller's.
func (r *Ring) RegisterEventfd(fd int) error {
	n := int32(fd)
	if err := r.register(registerEventfd, unsafe.Pointer(&n), 1); err != nil {
		return fmt.Errorf("register an eventfd with io_uring: %w", err)
	}
	return nil
}

func (r *Ring) register(code int, arg unsafe.Pointer, n int) error {
	if _, _, errno := r.call(code, arg, n); errno != 0 {
		return errno
	}
	return nil
}

func (r *Ring) call(code int, arg unsafe.Pointer, n int) (r1, r2 uintptr, errno unix.Errno) {
	return unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), uintptr(code), uintptr(arg), uintptr(n), 0, 0)
}

// Close gives up the ring. Operations must have completed: what is still in
// flight is cancelled by the kernel at its leisure, after Close has returned, and
// goes on using its memory until then. To let go of registered files at once,
// it must be called by the issuer.
func (r *Ring) Close() error {
	if r.fd < 0 {
		return nil
	}
	errs := []error{r.unregisterRing()}
	if r.buffers != nil {
		errs = append(errs, r.SetBuffers()) // at once, not when the kernel comes to it
	}
	if r.files {
		errs = append(errs, r.register(unregisterFiles, nil, 0))
	}
	for _, m := range [][]byte{r.sqeMem, r.ringMem} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	errs = append(errs, unix.Close(r.fd))
	*r = Ring{fd: -1}
	return errors.Join(errs...)
}
