package disk

import (
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"golang.org/x/sys/unix"
)

func TestResize(t *testing.T) {
	everywhere(t, 4*mib, func(t *testing.T, r *rig) {
		if r.store.Info().Kind == Partition {
			return // its size is not its file's
		}
		changed, err := r.store.Refresh()
		require.NoError(t, err)
		require.False(t, changed)
		beyond := transfer(Write, 4*mib, noise(aligned(t, 8192)))
		r.do(beyond)
		require.Equal(t, unix.EIO, beyond.Err)

		for _, size := range []int64{8 * mib, 8*mib + 8192, 5 * mib} {
			require.NoError(t, os.Truncate(r.backing, size))
			if r.store.Info().Kind == BlockDevice {
				blktest.Resize(t, r.path)
			}
			changed, err = r.store.Refresh()
			require.NoError(t, err)
			require.True(t, changed)
			require.Equal(t, size, r.store.Info().Size)
			r.must(beyond)
			require.Equal(t, beyond.Iov[0].Len, uint64(len(r.outside(4*mib, 8192))))
		}
	})
}

func TestInfoAndRefreshTogether(t *testing.T) {
	path := blktest.File(t, mib)
	s := opened(t, path, Options{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				if n := s.Info().Size; n%mib != 0 {
					panic(n)
				}
				if err := s.Flush(); err != nil {
					panic(err)
				}
			}
		})
	}
	for i := range int64(200) {
		require.NoError(t, os.Truncate(path, (1+i%3)*mib))
		_, err := s.Refresh()
		require.NoError(t, err)
	}
	wg.Wait()
	require.NoError(t, s.Close())
	_, err := s.Refresh()
	require.ErrorIs(t, err, unix.EBADF)
	require.ErrorIs(t, s.Flush(), unix.EBADF)
}
