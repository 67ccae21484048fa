package disk

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
)

func TestMountedDiskIsRefused(t *testing.T) {
	dev := ext4(t, 16*mib)
	dir := blktest.Mount(t, dev, "ext4", "")
	refused(t, dev, Options{}, ErrBusy, "mounted on "+dir+" (ext4)", "force")
	refused(t, dev, Options{ReadOnly: true}, ErrBusy, "mounted on")

	var log strings.Builder
	s := opened(t, dev, Options{Force: true, ReadOnly: true, Log: logTo(&log)})
	require.EqualValues(t, 16*mib, s.Info().Size)
	require.Contains(t, log.String(), "mounted on "+dir)
}

func TestDiskAndPartitionExcludeEachOther(t *testing.T) {
	dev := blktest.Loop(t, blktest.File(t, 32*mib), blktest.LoopOptions{Partitions: true})
	p1 := blktest.Partition(t, dev, 1, mib, 16*mib)
	p2 := blktest.Partition(t, dev, 2, 17*mib, 8*mib)

	out, err := exec.Command("mkfs.ext4", "-q", "-F", p1).CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Run("mounted partition", func(t *testing.T) {
		dir := blktest.Mount(t, p1, "ext4", "")
		refused(t, dev, Options{}, ErrBusy, "mounted on "+dir)
		refused(t, p1, Options{}, ErrBusy, "mounted on "+dir)
		opened(t, p2, Options{})
	})
	t.Run("served disk", func(t *testing.T) {
		opened(t, dev, Options{})
		refused(t, p1, Options{}, ErrBusy, "already served by this process")
	})
	t.Run("served partition", func(t *testing.T) {
		opened(t, p1, Options{})
		refused(t, dev, Options{}, ErrBusy, "already served by this process")
		opened(t, p2, Options{})
	})
	opened(t, dev, Options{})
}

func TestServedTwiceIsRefused(t *testing.T) {
	for name, make := range media() {
		t.Run(name, func(t *testing.T) {
			m := make(t, 4*mib)
			s, err := Open(m.path, Options{})
			require.NoError(t, err)
			refused(t, m.path, Options{}, ErrBusy, "already served by this process", "force")
			refused(t, m.path, Options{ReadOnly: true}, ErrBusy, "already served by this process")
			require.NoError(t, s.Close())
			opened(t, m.path, Options{})
		})
	}
}

func TestServedByAnotherProcess(t *testing.T) {
	for name, make := range media() {
		t.Run(name, func(t *testing.T) {
			m := make(t, 4*mib)
			said, pid := inChild(t, m.path, nil)
			require.Contains(t, said, "opened")
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			require.NoError(t, err)
			refused(t, m.path, Options{}, ErrBusy, fmt.Sprintf("opened by %s (pid %d)", strings.TrimSpace(string(comm)), pid))
		})
	}
}

func TestReadersShareAFile(t *testing.T) {
	path := blktest.File(t, mib)
	opened(t, path, Options{ReadOnly: true})
	opened(t, path, Options{ReadOnly: true})
	refused(t, path, Options{}, ErrBusy, "already served by this process")
	var log strings.Builder
	opened(t, path, Options{Force: true, Log: logTo(&log)})
	require.Contains(t, log.String(), "as forced")
}

func TestFileBehindALoopDevice(t *testing.T) {
	path := blktest.File(t, 16*mib)
	dev := blktest.Loop(t, path, blktest.LoopOptions{})
	refused(t, path, Options{}, ErrBusy, "behind "+dev, "force")
	out, err := exec.Command("mkfs.ext4", "-q", "-F", dev).CombinedOutput()
	require.NoError(t, err, "%s", out)
	dir := blktest.Mount(t, dev, "ext4", "")
	refused(t, path, Options{}, ErrBusy, "behind "+dev+" mounted on "+dir)
	opened(t, path, Options{ReadOnly: true, Force: true})
}

func TestDeviceBehindALoopDevice(t *testing.T) {
	below := blktest.Loop(t, blktest.File(t, 16*mib), blktest.LoopOptions{})
	above := blktest.Loop(t, below, blktest.LoopOptions{})
	refused(t, below, Options{}, ErrBusy, "behind "+above)
	opened(t, above, Options{})
}

func TestSwapIsRefused(t *testing.T) {
	dev := blktest.Loop(t, blktest.File(t, 16*mib), blktest.LoopOptions{})
	out, err := exec.Command("mkswap", dev).CombinedOutput()
	require.NoError(t, err, "%s", out)
	blktest.Swap(t, dev)
	refused(t, dev, Options{}, ErrBusy, "swapped on as "+dev)
}
