package disk

import (
	"errors"
	"fmt"
	"hash/fnv"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	// quickRange is the longest range operation to offer where it takes no time
	// by its length, and slowRange where it may mean to write.
	quickRange = 1 << 30
	slowRange  = 32 << 20
)

func openFile(path string, st *unix.Stat_t, o Options) (*Disk, error) {
	holders := o.roots.fileHolders(st)
	if len(holders) > 0 {
		if !o.Force {
			return nil, busyError(path, holders, "release it", nil)
		}
		o.Log.Warn("serving a file that is in use, as forced", "disk", path, "holders", holders)
	}
	fd, err := open(path, o.openFlags())
	if err != nil {
		return nil, openError(path, st, o, err)
	}
	d := &Disk{log: o.Log, info: Info{Path: path, Kind: File, ReadOnly: o.ReadOnly}}
	d.t.buffered, d.t.direct, d.t.readOnly = fd, -1, o.ReadOnly
	if err := d.setUpFile(path, o); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Disk) setUpFile(path string, o Options) error {
	var st unix.Stat_t
	if err := unix.Fstat(d.t.buffered, &st); err != nil {
		return openError(path, nil, o, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &Error{Path: path, Kind: ErrNotDisk, What: "has just become something else", Mend: "try again"}
	}
	block := max(o.BlockSize, 512)
	if err := checkSize(path, st.Size, block); err != nil {
		return err
	}
	d.t.size.Store(st.Size)
	if err := d.lock(path, &st, o); err != nil {
		return err
	}
	i := &d.info
	i.LogicalBlock = block
	i.PhysicalBlock = max(block, powerOfTwo(int64(st.Blksize)))
	i.MinIO = i.PhysicalBlock
	i.Serial = fileSerial(path, &st)
	d.fileRanges(&st)
	return d.openDirect(o)
}

func checkSize(path string, size int64, block uint32) error {
	e := &Error{Path: path, Kind: ErrSize}
	switch {
	case size == 0:
		e.What, e.Mend = "is empty", fmt.Sprintf("give it a size, as with: truncate -s 1G %s", path)
	case size%int64(block) != 0:
		e.What = fmt.Sprintf("its size of %d bytes is not a multiple of the block size of %d", size, block)
		e.Mend = fmt.Sprintf("round it up, as with: truncate -s %%%d %s", block, path)
	default:
		return nil
	}
	return e
}

// powerOfTwo returns n if it can be a physical block size, else 0.
func powerOfTwo(n int64) uint32 {
	if n < 512 || n > 1<<20 || n&(n-1) != 0 {
		return 0
	}
	return uint32(n)
}

// lock locks the whole file, for as long as it is open: for writing, or for
// reading if that is all we do. The lock belongs to the open file, so it also
// keeps this process from serving the file twice.
func (d *Disk) lock(path string, st *unix.Stat_t, o Options) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: unix.SEEK_SET}
	if o.ReadOnly {
		l.Type = unix.F_RDLCK
	}
	err := letGo(func() error { return unix.FcntlFlock(uintptr(d.t.buffered), unix.F_OFD_SETLK, &l) })
	switch {
	case err == nil:
		d.info.Exclusive = true
		return nil
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		holders := o.roots.lockHolders(st)
		if !o.Force {
			return busyError(path, holders, "stop that first", err)
		}
		o.Log.Warn("serving a file that is locked, as forced", "disk", path, "holders", holders)
	default:
		o.Log.Warn("file cannot be locked against other users", "disk", path, "err", err)
	}
	return nil
}

// fileRanges finds out what can be done without data. To punch a hole behind the
// end of the file changes nothing, but tells whether holes can be punched.
func (d *Disk) fileRanges(st *unix.Stat_t) {
	unit := uint32(max(d.info.LogicalBlock, powerOfTwo(int64(st.Blksize))))
	holes := false
	if !d.t.readOnly {
		end := (st.Size + int64(unit) - 1) / int64(unit) * int64(unit)
		holes = unix.Fallocate(d.t.buffered, punchHole, end, int64(unit)) == nil
	}
	if holes {
		d.info.Discard = RangeLimits{Supported: true, Granularity: unit, MaxBytes: quickRange}
		d.info.ZeroUnmaps = true
	}
	d.info.WriteZeroes = RangeLimits{Supported: !d.t.readOnly, Granularity: d.info.LogicalBlock, MaxBytes: slowRange}
}

// fileSerial is the same as long as the file stays where it is.
func fileSerial(path string, st *unix.Stat_t) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%d", path, st.Ino)
	return fmt.Sprintf("%016x", h.Sum64())
}
