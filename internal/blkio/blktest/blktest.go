// Package blktest makes real block devices for tests: loop devices over files,
// and partitions on them. It needs root.
package blktest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LoopOptions describe a loop device. The zero value has blocks of 512 bytes.
type LoopOptions struct {
	BlockSize  uint32
	ReadOnly   bool
	Direct     bool
	Partitions bool   // partitions can be added
	Offset     uint64 // in the file, in bytes
}

// File creates a sparse file of size bytes in a directory of its own, and returns
// its path.
func File(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, size))
	return path
}

// Loop binds the file to a free loop device until the test ends, and returns the
// device's path. The device is open until then: its last close unbinds it, also when
// the test is killed.
func Loop(t testing.TB, file string, o LoopOptions) string {
	t.Helper()
	flags := os.O_RDWR
	if o.ReadOnly {
		flags = os.O_RDONLY
	}
	back, err := os.OpenFile(file, flags, 0)
	must(t, err)
	defer back.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	must(t, err)
	defer control.Close()

	config := unix.LoopConfig{Fd: uint32(back.Fd()), Size: o.BlockSize}
	config.Info.Offset = o.Offset
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	for flag, on := range map[uint32]bool{
		unix.LO_FLAGS_READ_ONLY: o.ReadOnly, unix.LO_FLAGS_DIRECT_IO: o.Direct, unix.LO_FLAGS_PARTSCAN: o.Partitions,
	} {
		if on {
			config.Info.Flags |= flag
		}
	}
	for range 100 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		must(t, err)
		path := fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(path, flags, 0)
		must(t, err)
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == unix.EBUSY { // somebody else was faster
			dev.Close()
			continue
		}
		t.Cleanup(func() { unbind(t, dev) })
		must(t, err)
		return path
	}
	t.Fatal("no free loop device")
	return ""
}

func unbind(t testing.TB, dev *os.File) {
	must(t, dev.Close())
	// Somebody else may have it open for a moment; until then the number is taken.
	backing := filepath.Join("/sys/block", filepath.Base(dev.Name()), "loop/backing_file")
	for range 500 {
		if _, err := os.Stat(backing); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s is still bound: somebody has it open", dev.Name())
}

// Resize tells the loop device that its file has another size.
func Resize(t testing.TB, path string) {
	t.Helper()
	dev, err := os.Open(path)
	must(t, err)
	defer dev.Close()
	must(t, unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0))
}

// Partition adds partition number n to the device, from start bytes on, until the
// test ends, and returns its path. There is no partition table.
func Partition(t testing.TB, device string, n int32, start, length int64) string {
	t.Helper()
	must(t, blkpg(device, unix.BLKPG_ADD_PARTITION, n, start, length))
	t.Cleanup(func() { must(t, blkpg(device, unix.BLKPG_DEL_PARTITION, n, 0, 0)) })
	path := fmt.Sprintf("%sp%d", device, n)
	for range 100 {
		if _, err := os.Stat(path); err == nil {
			return path
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s did not appear", path)
	return ""
}

// blkpg issues BLKPG, include/uapi/linux/blkpg.h.
func blkpg(device string, op, n int32, start, length int64) error {
	dev, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	part := struct {
		start, length int64
		n             int32
		_             [128]byte
	}{start: start, length: length, n: n}
	arg := struct {
		op, flags, length int32
		data              unsafe.Pointer
	}{op: op, length: int32(unsafe.Sizeof(part)), data: unsafe.Pointer(&part)}
	const ioctl = 0x1269
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), ioctl, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("BLKPG %s: %w", device, errno)
	}
	return nil
}

// Mount mounts the device at a directory of its own until the test ends, and
// returns that.
func Mount(t testing.TB, device, fstype, data string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, unix.Mount(device, dir, fstype, 0, data))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	return dir
}

// Swap swaps on the device, which mkswap has prepared, until the test ends.
func Swap(t testing.TB, device string) {
	t.Helper()
	path, err := unix.BytePtrFromString(device)
	must(t, err)
	swap := func(call uintptr) {
		if _, _, errno := unix.Syscall(call, uintptr(unsafe.Pointer(path)), 0, 0); errno != 0 {
			t.Errorf("swap on %s: %v", device, errno)
		}
	}
	swap(unix.SYS_SWAPON)
	t.Cleanup(func() { swap(unix.SYS_SWAPOFF) })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
