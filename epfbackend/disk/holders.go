package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// This file finds out who uses a disk, to name them. It is not what keeps two
// users apart: the kernel does that, by O_EXCL or a lock, except for loop
// devices, which claim nothing.

// deviceHolders names what in the kernel uses the device rdev, the disk that it
// is a partition of, or one of its partitions.
func (r roots) deviceHolders(rdev uint64) []string {
	family := r.family(rdev)
	names := r.mounts(family)
	names = append(names, r.swaps(func(st *unix.Stat_t) bool {
		return st.Mode&unix.S_IFMT == unix.S_IFBLK && family[st.Rdev]
	})...)
	for dev := range family {
		entries, _ := os.ReadDir(filepath.Join(r.device(dev), "holders"))
		for _, e := range entries {
			name := e.Name()
			if dm := read(r.sys, "class/block", name, "dm/name"); dm != "" {
				name += " (" + dm + ")"
			}
			names = append(names, "held by "+name)
		}
	}
	return unique(append(names, r.loops(func(l *unix.LoopInfo64) bool { return l.Rdevice != 0 && family[l.Rdevice] })...))
}

// fileHolders names what in the kernel uses the regular file of st.
func (r roots) fileHolders(st *unix.Stat_t) []string {
	names := r.swaps(func(s *unix.Stat_t) bool { return s.Dev == st.Dev && s.Ino == st.Ino })
	return unique(append(names, r.loops(func(l *unix.LoopInfo64) bool {
		return l.Rdevice == 0 && l.Device == st.Dev && l.Inode == st.Ino
	})...))
}

// deviceUsers names who may have opened the device, or one of its family,
// exclusively.
func (r roots) deviceUsers(rdev uint64) []string {
	family := r.family(rdev)
	return append(r.deviceHolders(rdev), r.processes(func(st *unix.Stat_t, _ string) bool {
		return st.Mode&unix.S_IFMT == unix.S_IFBLK && family[st.Rdev]
	})...)
}

// lockHolders names who has locked the file, or if that cannot be seen, who has
// it open.
func (r roots) lockHolders(st *unix.Stat_t) []string {
	same := func(s *unix.Stat_t) bool { return s.Dev == st.Dev && s.Ino == st.Ino }
	names := r.processes(func(s *unix.Stat_t, fdinfo string) bool {
		return same(s) && strings.Contains(read(fdinfo), "\nlock:")
	})
	if len(names) == 0 {
		names = r.processes(func(s *unix.Stat_t, _ string) bool { return same(s) })
	}
	return names
}

// family returns the numbers of a device, of its whole disk if it is a partition,
// and of its partitions if it is a disk.
func (r roots) family(rdev uint64) map[uint64]bool {
	family := map[uint64]bool{rdev: true}
	dir := r.device(rdev)
	add := func(dir string) {
		var major, minor uint32
		if n, _ := fmt.Sscanf(read(dir, "dev"), "%d:%d", &major, &minor); n == 2 {
			family[unix.Mkdev(major, minor)] = true
		}
	}
	if whole := wholeDisk(dir); whole != dir {
		add(whole)
		return family
	}
	partitions, _ := filepath.Glob(filepath.Join(dir, "*", "partition"))
	for _, p := range partitions {
		add(filepath.Dir(p))
	}
	return family
}

// mounts names the mount points of devices, in all mount namespaces that we may
// look into.
func (r roots) mounts(devices map[uint64]bool) (names []string) {
	seen := map[string]bool{}
	for _, p := range r.allProcesses() {
		space, err := os.Readlink(filepath.Join(r.proc, fmt.Sprint(p.PID), "ns/mnt"))
		if err != nil || seen[space] {
			continue
		}
		seen[space] = true
		mounts, _ := p.MountInfo()
		for _, m := range mounts {
			if devices[mountDevice(m)] {
				names = append(names, fmt.Sprintf("mounted on %s (%s)", m.MountPoint, m.FSType))
			}
		}
	}
	return unique(names)
}

// mountDevice returns the number of the device that is mounted. Filesystems over
// several devices have a number of their own, and only name one of them.
func mountDevice(m *procfs.MountInfo) uint64 {
	var major, minor uint32
	fmt.Sscanf(m.MajorMinorVer, "%d:%d", &major, &minor)
	if major != 0 {
		return unix.Mkdev(major, minor)
	}
	var st unix.Stat_t
	if strings.HasPrefix(m.Source, "/") && unix.Stat(m.Source, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return st.Rdev
	}
	return 0
}

// swaps names the swap areas that match.
func (r roots) swaps(match func(*unix.Stat_t) bool) (names []string) {
	fs, err := procfs.NewFS(r.proc)
	if err != nil {
		return nil
	}
	areas, _ := fs.Swaps()
	for _, a := range areas {
		var st unix.Stat_t
		if unix.Stat(a.Filename, &st) == nil && match(&st) {
			names = append(names, "swapped on as "+a.Filename)
		}
	}
	return names
}

// loops names the loop devices that match, and where they are mounted.
func (r roots) loops(match func(*unix.LoopInfo64) bool) (names []string) {
	bound, _ := filepath.Glob(filepath.Join(r.sys, "block/loop*/loop/backing_file"))
	for _, b := range bound {
		name := filepath.Base(filepath.Dir(filepath.Dir(b)))
		path := filepath.Join(r.dev, name)
		fd, err := open(path, unix.O_RDONLY|unix.O_CLOEXEC)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(fd)
		var st unix.Stat_t
		statErr := unix.Fstat(fd, &st)
		unix.Close(fd)
		if err != nil || statErr != nil || !match(info) {
			continue
		}
		names = append(names, strings.Join(append([]string{"behind " + path}, r.mounts(r.family(st.Rdev))...), " "))
	}
	return names
}

// processes names the processes that have a file open that matches; fdinfo is the
// path of what the kernel tells of that open file.
func (r roots) processes(match func(st *unix.Stat_t, fdinfo string) bool) (names []string) {
	for _, p := range r.allProcesses() {
		fds, _ := p.FileDescriptors()
		dir := filepath.Join(r.proc, fmt.Sprint(p.PID))
		if !slices.ContainsFunc(fds, func(fd uintptr) bool {
			var st unix.Stat_t
			return unix.Stat(filepath.Join(dir, "fd", fmt.Sprint(fd)), &st) == nil &&
				match(&st, filepath.Join(dir, "fdinfo", fmt.Sprint(fd)))
		}) {
			continue
		}
		if p.PID == os.Getpid() {
			names = append(names, "already served by this process")
			continue
		}
		comm, _ := p.Comm()
		names = append(names, fmt.Sprintf("opened by %s (pid %d)", comm, p.PID))
	}
	return names
}

func (r roots) allProcesses() procfs.Procs {
	fs, err := procfs.NewFS(r.proc)
	if err != nil {
		return nil
	}
	procs, _ := fs.AllProcs()
	// Ourselves first: names as we see them.
	slices.SortFunc(procs, func(a, b procfs.Proc) int {
		if a.PID == os.Getpid() || b.PID == os.Getpid() {
			return map[bool]int{true: -1, false: 1}[a.PID == os.Getpid()]
		}
		return a.PID - b.PID
	})
	return procs
}

func unique(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

// lingering is how long what a process held may outlive it: the kernel takes an
// io_uring apart after its process is gone.
const lingering = 500 * time.Millisecond

// letGo takes what others may not have, and gives one that has just died the time to
// let go of it: a server that is started again at once is not to be refused.
func letGo(take func() error) error {
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := take()
		taken := errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EBUSY)
		if !taken || time.Since(begin) > lingering {
			return err
		}
	}
}
