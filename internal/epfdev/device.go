package epfdev

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is an open function. Its methods may be called from any goroutine until
// Close.
type Device struct {
	fd     int
	copies sync.Pool // of *Copies
}

// Open opens a device node. EBUSY: another process has it.
func Open(path string) (*Device, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	d := &Device{fd: fd}
	d.copies.New = func() any { return new(Copies) }
	info, err := d.Info()
	switch {
	case errors.Is(err, unix.ENOTTY):
		err = fmt.Errorf("%s: the driver's interface is another one: install the kernel of this version", path)
	case err == nil && info.Version != apiVersion:
		err = fmt.Errorf("%s: the driver's interface has version %d, not %d: install the kernel of this version", path, info.Version, apiVersion)
	}
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// FD is the descriptor. It becomes readable when there are events.
func (d *Device) FD() int { return d.fd }

// Close ends what belongs to the open file; what was committed stays.
func (d *Device) Close() error { return unix.Close(d.fd) }

// call makes a call and says in an error which one.
func (d *Device) call(what string, nr uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), nr, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return fmt.Errorf("%s: %w", what, errno)
	}
}

// Info asks what the function and its controller are like.
func (d *Device) Info() (Info, error) {
	i := Info{argsz: uint32(unsafe.Sizeof(Info{}))}
	err := d.call("ask the controller", callInfo, unsafe.Pointer(&i))
	return i, err
}

// Controller returns the name of the controller.
func (i *Info) Controller() string { return text(i.controller[:]) }

// DMADriver returns the name of the DMA engine's driver, "" for none.
func (i *Info) DMADriver() string { return text(i.dmaDriverName[:]) }

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

// SetHeader sets the identifiers.
func (d *Device) SetHeader(h Header) error {
	h.argsz = uint32(unsafe.Sizeof(h))
	return d.call("set the header", callSetHeader, unsafe.Pointer(&h))
}

// AddCapability puts a capability behind those before it.
func (d *Device) AddCapability(data []byte) error {
	c := capability{argsz: uint32(unsafe.Sizeof(capability{})), size: uint32(len(data))}
	if copy(c.data[:maxCapability], data) < len(data) {
		return fmt.Errorf("add a capability of %d bytes: %w", len(data), unix.EINVAL)
	}
	return d.call("add a capability", callAddCapability, unsafe.Pointer(&c))
}

// AllocDoorbells allocates count doorbells; 0 asks what was allocated. ENODEV: there
// are none.
func (d *Device) AllocDoorbells(count int) (Doorbells, error) {
	b := Doorbells{argsz: uint32(unsafe.Sizeof(Doorbells{})), Count: uint32(count)}
	err := d.call("allocate doorbells", callAllocDoorbells, unsafe.Pointer(&b))
	return b, err
}

// SetBAR makes a BAR of ranges, in order and without gaps, and returns its size as
// the host sees it, in bytes.
func (d *Device) SetBAR(n int, flags uint32, ranges []Range) (size uint64, err error) {
	b := bar{argsz: uint32(unsafe.Sizeof(bar{})), flags: flags, bar: uint32(n), count: uint32(len(ranges))}
	if copy(b.ranges[:], ranges) < len(ranges) {
		return 0, fmt.Errorf("set BAR %d: %d ranges: %w", n, len(ranges), unix.EINVAL)
	}
	err = d.call(fmt.Sprintf("set BAR %d", n), callSetBAR, unsafe.Pointer(&b))
	return b.size, err
}

// SetMSIX puts the table at an offset in a BAR, and the pending bits behind it.
func (d *Device) SetMSIX(vectors, bar int, offset uint64) error {
	m := msix{argsz: uint32(unsafe.Sizeof(msix{})), vectors: uint32(vectors), bar: uint32(bar), offset: offset}
	return d.call("set MSI-X", callSetMSIX, unsafe.Pointer(&m))
}

// Commit makes what was set the function. It stays when the device is closed.
func (d *Device) Commit() error { return d.call("commit the function", callCommit, nil) }

// Revoke takes a Commit back, and all that was set.
func (d *Device) Revoke() error { return d.call("revoke the function", callRevoke, nil) }

// MapRanges puts parts of BARs where they lead. EAGAIN: the controller cannot yet.
func (d *Device) MapRanges() error { return d.call("map the ranges of BARs", callMapRanges, nil) }

// SetEventfd has an eventfd signalled by a doorbell; -1: none.
func (d *Device) SetEventfd(doorbell, fd int) error {
	e := eventfd{argsz: uint32(unsafe.Sizeof(eventfd{})), doorbell: uint32(doorbell), fd: int32(fd)}
	return d.call("set the eventfd of a doorbell", callSetEventfd, unsafe.Pointer(&e))
}

// RaiseMSIX signals a vector. ENETDOWN: there is no link.
func (d *Device) RaiseMSIX(vector int) error {
	i := irq{argsz: uint32(unsafe.Sizeof(irq{})), kind: irqMSIX, vector: uint32(vector)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), callRaiseIRQ, uintptr(unsafe.Pointer(&i)))
	if errno != 0 {
		return errno
	}
	return nil
}

// Events reads events, as many as there are and fit.
func (d *Device) Events(out []Event) (int, error) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(out))), len(out)*int(unsafe.Sizeof(Event{})))
	for {
		n, err := unix.Read(d.fd, b)
		switch err {
		case nil:
			return n / int(unsafe.Sizeof(Event{})), nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return 0, nil
		}
		return 0, fmt.Errorf("read events: %w", err)
	}
}

// MapBAR maps n bytes of the memory of a BAR, from its start.
func (d *Device) MapBAR(bar, n int) ([]byte, error) {
	return d.mmap(fmt.Sprintf("map the memory of BAR %d", bar), int64(bar)*mmapBAR, n)
}

// MapState maps the function's private state.
func (d *Device) MapState(n int) ([]byte, error) {
	return d.mmap("map the function's state", mmapState, n)
}

func (d *Device) mmap(what string, off int64, n int) ([]byte, error) {
	b, err := unix.Mmap(d.fd, off, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return b, nil
}

// Copies is a list of copies that one call makes, at most MaxCopies. It is kept on the
// heap, and what it points to with it, until Do.
type Copies struct {
	dev      *Device
	args     copyArgs
	segments [MaxCopies]copySegment
}

// Copies returns an empty list. It does not allocate where others were done before.
func (d *Device) Copies() *Copies {
	c := d.copies.Get().(*Copies)
	c.dev, c.args.count = d, 0
	return c
}

// Add appends a copy between p and the host's memory at a bus address. All of a list
// have at most MaxBytes.
func (c *Copies) Add(addr uint64, p []byte, toHost bool) {
	s := &c.segments[c.args.count]
	*s = copySegment{pci: addr, addr: unsafe.Pointer(unsafe.SliceData(p)), length: uint32(len(p))}
	if toHost {
		s.flags = ToHost
	}
	c.args.count++
}

// Do makes the copies in order, up to the first that fails. ENETDOWN: there is no link,
// or the host does not allow it. The list must not be used again.
func (c *Copies) Do() error {
	c.args.argsz, c.args.segments = uint32(unsafe.Sizeof(c.args)), unsafe.Pointer(&c.segments)
	var errno unix.Errno
	for again := true; again; again = errno == unix.EINTR {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(c.dev.fd), callCopy, uintptr(unsafe.Pointer(&c.args)))
	}
	clear(c.segments[:c.args.count])
	c.dev.copies.Put(c)
	if errno != 0 {
		return errno
	}
	return nil
}

// Copy moves bytes between p and the host's memory at a bus address, as Copies do.
func (d *Device) Copy(addr uint64, p []byte, toHost bool) error {
	for len(p) > 0 {
		n := min(len(p), MaxBytes)
		c := d.Copies()
		c.Add(addr, p[:n], toHost)
		if err := c.Do(); err != nil {
			return err
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// Register makes memory a buffer of transfers. It must be unregistered before it is
// unmapped.
func (d *Device) Register(memory []byte) (id uint32, err error) {
	b := buffer{
		argsz: uint32(unsafe.Sizeof(buffer{})),
		addr:  unsafe.Pointer(unsafe.SliceData(memory)), size: uint64(len(memory)),
	}
	err = d.call("register memory for DMA", callRegister, unsafe.Pointer(&b))
	return b.id, err
}

// Unregister waits for the transfers of a buffer, and releases it.
func (d *Device) Unregister(id uint32) error {
	b := buffer{argsz: uint32(unsafe.Sizeof(buffer{})), id: id}
	return d.call("release memory from DMA", callUnregister, unsafe.Pointer(&b))
}

// Transfer returns the command for io_uring that moves segments between a buffer and
// the host, with its number. The segments must stay where they are until it has been
// submitted.
func Transfer(segments []Segment, buffer uint32, flags uint16) (number uint32, command [2]uint64) {
	t := transfer{
		segments: unsafe.Pointer(unsafe.SliceData(segments)),
		count:    uint16(len(segments)), flags: flags, buffer: buffer,
	}
	return uint32(cmdTransfer), *(*[2]uint64)(unsafe.Pointer(&t))
}
