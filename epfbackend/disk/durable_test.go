package disk

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
)

// flushes returns how many flush requests the loop device has completed
// (Documentation/admin-guide/iostats: the 16th number).
func flushes(t testing.TB, device string) int {
	t.Helper()
	b, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/stat")
	require.NoError(t, err)
	fields := strings.Fields(string(b))
	require.GreaterOrEqual(t, len(fields), 17)
	n, err := strconv.Atoi(fields[15])
	require.NoError(t, err)
	return n
}

func bothEngines(t *testing.T, f func(t *testing.T, kind EngineKind, direct DirectMode)) {
	for _, kind := range []EngineKind{URing, Plain} {
		for _, direct := range []DirectMode{DirectAuto, DirectOff} {
			t.Run(fmt.Sprintf("%s/direct=%t", kind, direct == DirectAuto), func(t *testing.T) { f(t, kind, direct) })
		}
	}
}

// What reaches the device below is seen in two ways: the flush requests that it
// counts, and the content of the file that backs it.
func TestFlushReachesTheDevice(t *testing.T) {
	bothEngines(t, func(t *testing.T, kind EngineKind, direct DirectMode) {
		backing := blktest.File(t, 4*mib)
		dev := blktest.Loop(t, backing, blktest.LoopOptions{})
		r := newRig(t, dev, Options{Direct: direct}, kind, 4)
		mem := noise(aligned(t, 64<<10))
		r.must(transfer(Write, mib, mem))
		below, err := os.ReadFile(backing)
		require.NoError(t, err)
		require.Equal(t, direct == DirectAuto, bytes.Equal(mem, below[mib:mib+len(mem)]),
			"only a direct write gets through by itself")
		before := flushes(t, dev)
		r.must(&IO{Op: Flush})
		require.Greater(t, flushes(t, dev), before)
		below, err = os.ReadFile(backing)
		require.NoError(t, err)
		require.True(t, bytes.Equal(mem, below[mib:mib+len(mem)]))

		r.must(transfer(Write, 2*mib, mem))
		before = flushes(t, dev)
		require.NoError(t, r.store.Flush())
		require.Greater(t, flushes(t, dev), before)
	})
}

func TestFlushCoversMisalignedMemory(t *testing.T) {
	bothEngines(t, func(t *testing.T, kind EngineKind, direct DirectMode) {
		backing := blktest.File(t, 4*mib)
		r := newRig(t, blktest.Loop(t, backing, blktest.LoopOptions{}), Options{Direct: direct}, kind, 4)
		mem := noise(aligned(t, 8192))
		odd := mem[3 : 3+4096]
		r.must(transfer(Write, mib, odd))
		below, err := os.ReadFile(backing)
		require.NoError(t, err)
		require.Equal(t, direct == DirectAuto, bytes.Equal(odd, below[mib:mib+4096]), "it bypasses the page cache, or is held there")
		r.must(&IO{Op: Flush})
		below, err = os.ReadFile(backing)
		require.NoError(t, err)
		require.True(t, bytes.Equal(odd, below[mib:mib+4096]))
	})
}

func TestDurableIsStableBeforeItIsDone(t *testing.T) {
	bothEngines(t, func(t *testing.T, kind EngineKind, direct DirectMode) {
		backing := blktest.File(t, 4*mib)
		dev := blktest.Loop(t, backing, blktest.LoopOptions{})
		r := newRig(t, dev, Options{Direct: direct}, kind, 4)
		mem := noise(aligned(t, 8192))
		for _, io := range []*IO{
			transfer(Write, 0, mem),
			transfer(Write, mib, mem[1:4097]), // by a copy, or the page cache
			{Op: WriteZeroes, Offset: 0, Length: 4096},
			{Op: Discard, Offset: mib, Length: mib},
		} {
			io.Durable = true
			before := flushes(t, dev)
			r.must(io)
			require.Greater(t, flushes(t, dev), before, "%+v", io)
			below, err := os.ReadFile(backing)
			require.NoError(t, err)
			if io.Op == Write {
				want := map[int64][]byte{0: mem, mib: mem[1:4097]}[io.Offset]
				require.True(t, bytes.Equal(want, below[io.Offset:io.Offset+io.Length]))
			}
		}
		before := flushes(t, dev)
		for range 20 {
			r.must(transfer(Write, 0, mem))
			r.must(&IO{Op: WriteZeroes, Offset: 0, Length: 4096})
		}
		require.Less(t, flushes(t, dev)-before, 10, "others do not flush; the rest of the system may")
	})
}

// ext4 makes a loop device with an ext4 on it.
func ext4(t testing.TB, size int64) (device string) {
	t.Helper()
	device = blktest.Loop(t, blktest.File(t, size), blktest.LoopOptions{})
	out, err := exec.Command("mkfs.ext4", "-q", "-F", device).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return device
}

func TestFlushOfAFileReachesTheDeviceBelowIt(t *testing.T) {
	bothEngines(t, func(t *testing.T, kind EngineKind, direct DirectMode) {
		dev := ext4(t, 64*mib)
		path := fileIn(t, blktest.Mount(t, dev, "ext4", ""), 4*mib)
		r := newRig(t, path, Options{Direct: direct}, kind, 4)
		require.Equal(t, direct == DirectAuto, r.store.Info().Direct, r.store.Info().DirectWhy)
		mem := noise(aligned(t, 64<<10))
		r.must(transfer(Write, mib, mem))
		before := flushes(t, dev)
		r.must(&IO{Op: Flush})
		require.Greater(t, flushes(t, dev), before)
		for _, io := range []*IO{
			transfer(Write, 2*mib, mem),
			{Op: WriteZeroes, Offset: mib, Length: 4096},
			{Op: Discard, Offset: 2 * mib, Length: 8192},
		} {
			io.Durable = true
			before = flushes(t, dev)
			r.must(io)
			require.Greater(t, flushes(t, dev), before, "%+v", io)
		}
	})
}
