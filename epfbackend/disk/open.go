package disk

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// DirectMode says whether requests shall bypass the page cache.
type DirectMode uint8

// Modes of access.
const (
	DirectAuto DirectMode = iota // where the disk can
	DirectOn                     // or refuse the disk
	DirectOff
)

// Options of Open. The zero value is what most want.
type Options struct {
	ReadOnly bool
	Direct   DirectMode

	// BlockSize is the logical block size to present: a power of two from 512 to
	// 4096. 0 means a block device's own, and 512 for a file or a null disk. What is
	// smaller than a block device's own is emulated, see Emulate; larger is refused.
	BlockSize uint32

	// Force takes the disk although somebody else uses it.
	Force bool

	Log *slog.Logger // nil: slog.Default()

	roots roots
}

// Open opens the disk at path: a block device, a partition, a regular file, or
// "null:SIZE" (SIZE in bytes, or with a suffix K, M, G, T, P or E), a disk that holds
// nothing: it reads as zeroes, and what is written is lost.
//
// A block device is opened exclusively, a file is locked: for writing, or with
// ReadOnly for reading, so that several may share it. A disk that is in use is
// refused. Errors about the disk are *Error.
func Open(path string, o Options) (Store, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.roots = o.roots.orDefault()
	if b := o.BlockSize; b != 0 && (b < 512 || b > 4096 || b&(b-1) != 0) {
		return nil, &Error{
			Path: path, Kind: ErrSize, What: fmt.Sprintf("block size %d cannot be served", b),
			Mend: "use 512, 1024, 2048 or 4096",
		}
	}
	if size, ok := strings.CutPrefix(path, "null:"); ok {
		return openNull(path, size, o)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, openError(path, nil, o, err)
	}
	var (
		d   *Disk
		err error
	)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d, err = openBlock(path, &st, o)
	case unix.S_IFREG:
		d, err = openFile(path, &st, o)
	case unix.S_IFDIR:
		err = &Error{Path: path, Kind: ErrNotDisk, What: "is a directory, not a disk", Mend: "name a block device or a file"}
	default:
		err = &Error{Path: path, Kind: ErrNotDisk, What: "is not a disk", Mend: "name a block device or a file"}
	}
	if err != nil {
		return nil, err
	}
	return d.present(o.BlockSize), nil
}

// present returns the disk with blocks of the given size, or its own, if 0, or 512 for
// a file. Drivers may access parts of larger blocks, too: those are emulated, unless the
// page cache does it.
func (d *Disk) present(size uint32) Store {
	own := d.info.LogicalBlock
	switch {
	case size == 0 && d.info.Kind == File:
		size = sectorSize
	case size == 0:
		size = own
	}
	if size < own || d.info.Direct && d.info.OffsetAlign > sectorSize {
		return newEmulated(d, size)
	}
	return d
}

// sectorSize is the unit of requests (virtio 1.4 §5.2.6).
const sectorSize = 512

// openError puts what open or stat said into words.
func openError(path string, st *unix.Stat_t, o Options, err error) error {
	e := &Error{Path: path, Err: err}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		e.Kind, e.What, e.Mend = ErrNotFound, "no such disk", "check the path"
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOMEDIUM):
		e.Kind, e.What, e.Mend = ErrNotFound, "there is no device (or no medium) behind this name", "check that it is plugged in"
	case errors.Is(err, unix.EROFS):
		return readOnlyError(path, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		e.Kind, e.What, e.Mend = ErrPermission, "permission denied", permissionMend(st, o)
	default:
		e.Kind, e.What = ErrNotDisk, fmt.Sprintf("cannot be opened: %v", err)
	}
	return e
}

func permissionMend(st *unix.Stat_t, o Options) string {
	mend := "run as root"
	if st == nil {
		return mend
	}
	if st.Mode&0o060 == 0o060 {
		group := strconv.Itoa(int(st.Gid))
		if g, err := user.LookupGroupId(group); err == nil {
			group = g.Name
		}
		mend += " or join group " + group
	}
	if !o.ReadOnly && st.Mode&unix.S_IFMT == unix.S_IFREG && st.Mode&0o444 != 0 {
		mend += ", or add readonly"
	}
	return mend
}

func readOnlyError(path string, err error) error {
	return &Error{Path: path, Kind: ErrReadOnly, Err: err, What: "can only be read", Mend: "add readonly"}
}

func busyError(path string, holders []string, mend string, err error) error {
	what := "in use by something that the kernel does not name"
	if len(holders) > 0 {
		what = "in use: " + strings.Join(holders, ", ")
	}
	return &Error{Path: path, Kind: ErrBusy, Err: err, What: what, Mend: mend + ", or insist with --force"}
}

// openFlags are those of the descriptor that holds the disk.
func (o Options) openFlags() int {
	flags := unix.O_CLOEXEC | unix.O_RDWR | unix.O_NOCTTY
	if o.ReadOnly {
		flags = unix.O_CLOEXEC | unix.O_RDONLY | unix.O_NOCTTY
	}
	return flags
}

// open is open(2), repeated when a signal cut it short.
func open(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// openAs opens the same file as fd again, with other flags, even if its name has
// come to mean another one.
func openAs(fd, flags int) (int, error) {
	return open(fmt.Sprintf("/proc/self/fd/%d", fd), flags)
}

// openDirect adds a descriptor that bypasses the page cache, if o and the disk
// allow, and says so in info.
func (d *Disk) openDirect(o Options) error {
	why := d.tryDirect(o)
	d.info.Direct = d.t.direct >= 0
	if d.info.Direct {
		d.info.DirectWhy = fmt.Sprintf("O_DIRECT, memory aligned to %d, offsets to %d", d.info.MemAlign, d.info.OffsetAlign)
		return nil
	}
	d.info.DirectWhy = why
	if o.Direct == DirectOn {
		return &Error{
			Path: d.info.Path, Kind: ErrUnsupported, What: "direct access is not possible: " + why,
			Mend: "leave out direct=on",
		}
	}
	return nil
}

// tryDirect returns why not, if not.
func (d *Disk) tryDirect(o Options) string {
	if o.Direct == DirectOff {
		return "asked for"
	}
	var fs unix.Statfs_t
	if d.info.Kind == File && unix.Fstatfs(d.t.buffered, &fs) == nil &&
		(fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC) {
		return "the file is in memory"
	}
	mem, off := d.info.LogicalBlock, d.info.LogicalBlock
	var st unix.Statx_t
	err := unix.Statx(d.t.buffered, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		if mem, off = st.Dio_mem_align, st.Dio_offset_align; mem == 0 || off == 0 {
			return "the filesystem cannot do it for this file"
		}
	}
	if mem&(mem-1) != 0 || off&(off-1) != 0 {
		return "alignment is not a power of two"
	}
	if d.t.size.Load()%int64(off) != 0 {
		return fmt.Sprintf("its size is not a multiple of the %d bytes that direct access is made of", off)
	}
	fd, err := openAs(d.t.buffered, o.openFlags()|unix.O_DIRECT)
	if err != nil {
		return fmt.Sprintf("O_DIRECT is refused: %v", err)
	}
	d.t.direct = fd
	d.t.memMask, d.t.offMask = uint64(mem-1), uint64(off-1)
	d.info.MemAlign, d.info.OffsetAlign = mem, off
	d.info.LogicalBlock = max(d.info.LogicalBlock, off) // for a file: smaller ones are emulated
	d.info.PhysicalBlock = max(d.info.PhysicalBlock, off)
	return ""
}

// roots are where the kernel tells of itself; tests have their own.
type roots struct{ sys, proc, dev string }

func (r roots) orDefault() roots {
	if r.sys == "" {
		r.sys = "/sys"
	}
	if r.proc == "" {
		r.proc = "/proc"
	}
	if r.dev == "" {
		r.dev = "/dev"
	}
	return r
}

// read returns the content of a small file without the white space around it,
// or "" if it cannot be read.
func read(path ...string) string {
	b, err := os.ReadFile(strings.Join(path, "/"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// readInt is read for a non-negative number; ok is false where there is none.
func readInt(path ...string) (n int64, ok bool) {
	n, err := strconv.ParseInt(read(path...), 0, 64)
	return n, err == nil && n >= 0
}
