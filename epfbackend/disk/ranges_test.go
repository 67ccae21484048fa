package disk

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"golang.org/x/sys/unix"
)

// filled returns noise that is all over the disk.
func (r *rig) filled(n int) []byte {
	r.t.Helper()
	mem := aligned(r.t, n)
	noise(mem)
	r.must(&IO{Op: Write, Length: int64(n), Iov: vec(mem)})
	return mem
}

// changed requires that the disk holds want, except for zeroes from off on.
func (r *rig) changed(want []byte, off, n int) {
	r.t.Helper()
	clear(want[off : off+n])
	require.True(r.t, bytes.Equal(want, r.outside(0, len(want))), "seen from outside")
	got := aligned(r.t, len(want))
	r.must(transfer(Read, 0, got))
	require.True(r.t, bytes.Equal(want, got), "read back")
}

func TestDiscardGivesSpaceBack(t *testing.T) {
	everywhere(t, 4*mib, func(t *testing.T, r *rig) {
		info := r.store.Info()
		require.True(t, info.Discard.Supported)
		want := r.filled(4 * mib)
		r.must(&IO{Op: Flush})
		full := r.allocated(t)
		require.GreaterOrEqual(t, full, int64(4*mib))
		r.must(&IO{Op: Discard, Offset: mib, Length: mib, Durable: true})
		r.changed(want, mib, mib)
		require.LessOrEqual(t, r.allocated(t), full-mib+64<<10)
		require.Equal(t, int64(mib)+r.start, r.hole(mib))
		_, err := r.store.Refresh()
		require.NoError(t, err)
		require.EqualValues(t, 4*mib, r.store.Info().Size)
	})
}

// hole returns where in the backing file the first hole is from off on.
func (m medium) hole(off int64) int64 {
	f, err := os.Open(m.backing)
	if err != nil {
		return -1
	}
	defer f.Close()
	at, err := unix.Seek(int(f.Fd()), off+m.start, unix.SEEK_HOLE)
	if err != nil {
		return -1
	}
	return at
}

func TestWriteZeroesKeepsOrGivesBackSpace(t *testing.T) {
	everywhere(t, 8*mib, func(t *testing.T, r *rig) {
		want := r.filled(8 * mib)
		r.must(&IO{Op: Flush})
		full := r.allocated(t)
		r.must(&IO{Op: WriteZeroes, Offset: mib, Length: 3*mib + 4096})
		r.changed(want, mib, 3*mib+4096)
		require.GreaterOrEqual(t, r.allocated(t), int64(8*mib), "the space is kept")
		require.True(t, r.store.Info().ZeroUnmaps)
		r.must(&IO{Op: WriteZeroes, Offset: 5 * mib, Length: 2 * mib, Unmap: true, Durable: true})
		r.changed(want, 5*mib, 2*mib)
		require.LessOrEqual(t, r.allocated(t), full-2*mib+64<<10, "the space is given back")
	})
}

func TestEveryWayToWriteZeroes(t *testing.T) {
	everywhere(t, 4*mib, func(t *testing.T, r *rig) {
		d := r.disk()
		block := int(d.info.LogicalBlock)
		for _, refused := range []uint32{
			1 << wayPunch,
			1<<wayPunch | 1<<wayZeroRange,
			1<<wayPunch | 1<<wayZeroRange | 1<<wayZeroOut,
		} {
			d.t.cannot.Store(refused)
			want := r.filled(4 * mib)
			for _, io := range []*IO{
				{Offset: int64(block), Length: int64(block)},
				{Offset: mib + int64(block), Length: mib + 128<<10 + int64(block), Durable: true},
				{Offset: 3 * mib, Length: mib, Unmap: true},
			} {
				io.Op = WriteZeroes
				r.must(io)
				r.changed(want, int(io.Offset), int(io.Length))
			}
		}
	})
}

func TestRefusedWayIsRememberedAndNotOurFault(t *testing.T) {
	// tmpfs really has no FALLOC_FL_ZERO_RANGE.
	for _, kind := range []EngineKind{URing, Plain} {
		r := newRig(t, fileIn(t, blktest.Mount(t, "none", "tmpfs", ""), mib), Options{}, kind, 4)
		r.must(&IO{Op: WriteZeroes, Length: mib})
		require.EqualValues(t, 1<<wayZeroRange, r.disk().t.cannot.Load())
	}
}

func TestZeroesThatAreNotAlignedToTheDiskAreWritten(t *testing.T) {
	for _, kind := range []EngineKind{URing, Plain} {
		r := newRig(t, media()["loop4k"](t, mib).path, Options{}, kind, 4)
		want := r.filled(mib)
		r.must(&IO{Op: WriteZeroes, Offset: 512, Length: 1024})
		r.changed(want, 512, 1024)
		require.Zero(t, r.disk().t.cannot.Load(), "which says nothing of the next")
	}
}

func TestLongRangesAreCutAtMultiples(t *testing.T) {
	var target target
	target.size.Store(1 << 40)
	io := &IO{Op: Discard, Offset: 3 << 20, Length: 1 << 30, Durable: true}
	var ends []int64
	for more := target.begin(io); more; more = target.finish(io, 0, 0) {
		if io.step.call == callSync {
			ends = append(ends, -1)
			continue
		}
		require.LessOrEqual(t, io.step.n, int64(rangeChunk))
		ends = append(ends, io.step.off+io.step.n)
	}
	require.NoError(t, io.Err)
	require.Equal(t, []int64{256 << 20, 512 << 20, 768 << 20, 1 << 30, 1<<30 + 3<<20, -1}, ends)
}

func TestCloseCutsLongOperationsShort(t *testing.T) {
	for _, kind := range []EngineKind{URing, Plain} {
		r := newRig(t, blktest.File(t, 1<<40), Options{}, kind, 4)
		r.disk().t.cannot.Store(1<<wayPunch | 1<<wayZeroRange)
		io := &IO{Op: WriteZeroes, Length: 1 << 40}
		r.e.Start(io)
		for began := time.Now(); time.Since(began) < 50*time.Millisecond; {
			done, _, err := r.e.Wait(false)
			require.NoError(t, err)
			require.Empty(t, done)
			time.Sleep(time.Millisecond)
		}
		began := time.Now()
		require.NoError(t, r.e.Close())
		require.Less(t, time.Since(began), 5*time.Second)
		require.ErrorIs(t, io.Err, unix.ECANCELED)
		require.NoError(t, r.e.Close(), "twice is harmless")
	}
}

func TestRetriesAreBounded(t *testing.T) {
	var target target
	target.size.Store(mib)
	io := &IO{Op: Flush}
	n := 0
	for more := target.begin(io); more; more = target.finish(io, 0, unix.EAGAIN) {
		n++
	}
	require.Equal(t, maxTries, n)
	require.True(t, errors.Is(io.Err, unix.EAGAIN))
}
