package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vblk-ep/vblk-ep/internal/blkio"
	"golang.org/x/sys/unix"
)

func openBlock(path string, st *unix.Stat_t, o Options) (*Disk, error) {
	flags := o.openFlags()
	if o.Force {
		if holders := o.roots.deviceHolders(st.Rdev); len(holders) > 0 {
			o.Log.Warn("serving a disk that is in use, as forced", "disk", path, "holders", holders)
		}
	} else {
		if holders := o.roots.deviceHolders(st.Rdev); len(holders) > 0 {
			return nil, busyError(path, holders, "release it", nil)
		}
		flags |= unix.O_EXCL
	}
	var fd int
	err := letGo(func() (err error) {
		fd, err = open(path, flags)
		return err
	})
	if errors.Is(err, unix.EBUSY) {
		return nil, busyError(path, o.roots.deviceUsers(st.Rdev), "stop that first", err)
	}
	if err != nil {
		return nil, blockOpenError(path, st, o, err)
	}
	d := &Disk{log: o.Log, info: Info{Path: path, Kind: BlockDevice, ReadOnly: o.ReadOnly, Exclusive: !o.Force}}
	d.t.buffered, d.t.direct, d.t.readOnly, d.t.block = fd, -1, o.ReadOnly, true
	if err := d.setUpBlock(path, st.Rdev, o); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// blockOpenError tells a device that is write-protected, for which some drivers
// say "no permission", from one that we may not open.
func blockOpenError(path string, st *unix.Stat_t, o Options, err error) error {
	if !o.ReadOnly && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)) {
		if read(o.roots.device(st.Rdev), "ro") == "1" {
			return readOnlyError(path, err)
		}
	}
	return openError(path, st, o, err)
}

func (d *Disk) setUpBlock(path string, rdev uint64, o Options) error {
	fd := d.t.buffered
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return openError(path, nil, o, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != rdev {
		return &Error{Path: path, Kind: ErrNotDisk, What: "has just become something else", Mend: "try again"}
	}
	if ro, err := unix.IoctlGetInt(fd, unix.BLKROGET); err == nil && ro != 0 && !o.ReadOnly {
		return readOnlyError(path, nil)
	}
	dir := o.roots.device(rdev)
	if err := d.blockLimits(dir, o); err != nil {
		return err
	}
	d.blockRanges(dir)
	d.info.Serial = deviceSerial(dir)
	d.info.Lifetime = lifetime(wholeDisk(dir))
	return d.openDirect(o)
}

// blockLimits asks the device, by ioctl, for what there is one for.
func (d *Disk) blockLimits(dir string, o Options) error {
	fd, i := d.t.buffered, &d.info
	get := func(req uint) uint32 {
		n, err := unix.IoctlGetInt(fd, req)
		if err != nil || n < 0 {
			return 0
		}
		return uint32(n)
	}
	i.LogicalBlock = max(get(unix.BLKSSZGET), 512)
	i.PhysicalBlock = max(get(unix.BLKPBSZGET), i.LogicalBlock)
	i.MinIO = max(get(unix.BLKIOMIN), i.LogicalBlock)
	i.OptIO = get(unix.BLKIOOPT)
	if off := int32(get(unix.BLKALIGNOFF)); off > 0 {
		i.AlignmentOffset = uint32(off)
	}
	i.Rotational = get(unix.BLKROTATIONAL) != 0
	if _, ok := readInt(dir, "partition"); ok {
		i.Kind = Partition
	}
	if o.BlockSize > i.LogicalBlock { // smaller ones are emulated
		return &Error{
			Path: i.Path, Kind: ErrSize, Mend: "leave the block size out",
			What: fmt.Sprintf("has blocks of %d bytes, which cannot be presented as %d", i.LogicalBlock, o.BlockSize),
		}
	}
	if zoned := read(wholeDisk(dir), "queue/zoned"); zoned == "host-managed" {
		return &Error{Path: i.Path, Kind: ErrUnsupported, What: "is a host-managed zoned disk, which only takes sequential writes"}
	}
	size, err := sizeOf(fd, true)
	if err != nil {
		return openError(i.Path, nil, o, err)
	}
	size -= size % int64(i.LogicalBlock)
	if size == 0 {
		return &Error{Path: i.Path, Kind: ErrSize, What: "has no size", Mend: "attach something to it, or insert a medium"}
	}
	d.t.size.Store(size)
	return nil
}

// blockRanges reads from sysfs what has no ioctl. Without sysfs nothing is
// supported but zeroes, which can always be written.
func (d *Disk) blockRanges(dir string) {
	i, queue := &d.info, filepath.Join(wholeDisk(dir), "queue")
	i.WriteZeroes = RangeLimits{Supported: !i.ReadOnly, Granularity: i.LogicalBlock, MaxBytes: slowRange}
	if i.ReadOnly {
		return
	}
	if n, _ := readInt(queue, "write_zeroes_max_bytes"); n > 0 {
		i.WriteZeroes.MaxBytes = quickRange
		i.ZeroUnmaps = true
	}
	unit, _ := readInt(queue, "discard_granularity")
	unit = max(unit, int64(i.LogicalBlock))
	first, _ := readInt(dir, "discard_alignment")
	if first >= 1<<31 {
		first = 0 // what the kernel prints for "misaligned"
	}
	if n, _ := readInt(queue, "discard_max_bytes"); n > 0 && unit < 1<<31 {
		i.Discard = RangeLimits{Supported: true, Granularity: uint32(unit), Alignment: uint32(first), MaxBytes: quickRange}
	}
	if i.Discard.Supported && erasesSecurely(d.t.buffered) {
		i.SecureErase = i.Discard
	}
}

// erasesSecurely asks for a range that starts in the middle of a sector: since
// Linux 5.19 the kernel looks whether the device can at all (EOPNOTSUPP) before
// it looks at the range (EINVAL). Before, it was the other way round.
func erasesSecurely(fd int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); n != 2 {
		return false
	}
	if major < 5 || major == 5 && minor < 19 {
		return false
	}
	return blkio.Range(fd, unix.BLKSECDISCARD, 1, 512) == unix.EINVAL
}

// device returns the directory of a block device in sysfs, or one that is not
// there.
func (r roots) device(rdev uint64) string {
	link := filepath.Join(r.sys, "dev/block", devNumber(rdev))
	if dir, err := filepath.EvalSymlinks(link); err == nil {
		return dir
	}
	return link
}

func devNumber(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

// wholeDisk returns the directory of the disk that a partition is on; dir itself
// for what is no partition.
func wholeDisk(dir string) string {
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		return filepath.Dir(dir)
	}
	return dir
}

// lifetime reads what the MMC driver shows of a device's wear.
func lifetime(dir string) *Lifetime {
	if !strings.HasPrefix(filepath.Base(dir), "mmcblk") {
		return nil
	}
	var l Lifetime
	if n, err := fmt.Sscanf(read(dir, "device/life_time"), "0x%x 0x%x", &l.TypeA, &l.TypeB); n != 2 || err != nil {
		return nil
	}
	if n, err := fmt.Sscanf(read(dir, "device/pre_eol_info"), "0x%x", &l.PreEOL); n != 1 || err != nil {
		return nil
	}
	return &l
}
