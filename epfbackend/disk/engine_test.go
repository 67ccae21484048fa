package disk

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestWhatIsWrittenIsThere(t *testing.T) {
	everywhere(t, 4*mib, func(t *testing.T, r *rig) {
		mem := aligned(t, mib)
		shadow := make([]byte, 4*mib)
		for i := range 40 {
			n := int64(4096 * (1 + rand.IntN(32)))
			off := 4096 * rand.Int64N((4*mib-n)/4096)
			noise(mem[:n])
			io := &IO{Op: Write, Offset: off, Length: n, Iov: vec(mem[:n]), Durable: i%5 == 0}
			if i%2 == 0 { // in pieces
				io.Iov = vec(mem[:512], mem[512:1024], mem[1024:n])
			}
			r.must(io)
			copy(shadow[off:], mem[:n])
		}
		// Misaligned in memory, in length and on the disk.
		off := int64(512 * 3)
		if r.store.Info().LogicalBlock > 512 {
			off = 4096 * 3
		}
		odd := mem[1 : 1+8192]
		noise(odd)
		r.must(&IO{Op: Write, Offset: off, Length: 8192, Iov: vec(odd[:7], odd[7:4000], odd[4000:])})
		copy(shadow[off:], odd)

		require.True(t, bytes.Equal(shadow, r.outside(0, len(shadow))))
		got := aligned(t, 4*mib)
		r.must(transfer(Read, 0, got))
		require.True(t, bytes.Equal(shadow, got))
		clear(got)
		r.must(transfer(Read, off, got[3:3+512], got[600:600+7680]))
		require.Equal(t, shadow[off:off+512], got[3:515])
		require.Equal(t, shadow[off+512:off+8192], got[600:600+7680])
		r.must(&IO{Op: Flush})
	})
}

func TestManyAtOnceAndVectorsBeyondTheKernelsLimit(t *testing.T) {
	everywhere(t, 16*mib, func(t *testing.T, r *rig) {
		mem := aligned(t, 16*mib)
		noise(mem)
		var ios []*IO
		for i := range 16 {
			part := mem[i*mib : (i+1)*mib]
			io := &IO{Op: Write, Offset: int64(i * mib), Length: mib}
			for off := 0; off < mib; off += 512 {
				io.Iov = append(io.Iov, vec(part[off:off+512])...)
			}
			ios = append(ios, io)
		}
		require.Greater(t, len(ios[0].Iov), 1024)
		r.do(ios...)
		for _, io := range ios {
			require.NoError(t, io.Err)
		}
		require.True(t, bytes.Equal(mem, r.outside(0, len(mem))))
		want := bytes.Clone(mem)
		clear(mem)
		for _, io := range ios {
			io.Op = Read
		}
		r.do(ios...)
		require.True(t, bytes.Equal(want, mem))
	})
}

func TestBadOperationsTouchNothing(t *testing.T) {
	everywhere(t, mib, func(t *testing.T, r *rig) {
		mem := aligned(t, 8192)
		for _, c := range []struct {
			io   IO
			want error
		}{
			{IO{Op: Read, Offset: mib, Length: 4096, Iov: vec(mem[:4096])}, unix.EIO},
			{IO{Op: Write, Offset: mib - 4096, Length: 8192, Iov: vec(mem)}, unix.EIO},
			{IO{Op: Write, Offset: -4096, Length: 4096, Iov: vec(mem[:4096])}, unix.EIO},
			{IO{Op: Discard, Offset: 1 << 62, Length: 1 << 62}, unix.EIO},
			{IO{Op: WriteZeroes, Offset: 0, Length: 1<<63 - 1}, unix.EIO},
			{IO{Op: Write, Offset: 0, Length: -1}, unix.EIO},
			{IO{Op: Read, Length: 4096, Iov: vec(mem)}, unix.EINVAL},
			{IO{Op: Read, Length: 4096}, unix.EINVAL},
			{IO{Op: Write, Length: 8192, Iov: []unix.Iovec{{Base: &mem[0], Len: 1<<64 - 4096}, {Base: &mem[0], Len: 12288}}}, unix.EINVAL},
			{IO{Op: 77, Length: 4096}, unix.EOPNOTSUPP},
			{IO{Op: SecureErase, Length: 4096}, unix.EOPNOTSUPP},
			{IO{Op: Read}, nil},
			{IO{Op: Discard}, nil},
		} {
			r.do(&c.io)
			require.Equal(t, c.want, c.io.Err, "%+v", c.io)
		}
		info := r.store.Info()
		require.EqualValues(t, mib, info.Size)
	})
}

func TestGoneMemoryIsAnError(t *testing.T) {
	everywhere(t, mib, func(t *testing.T, r *rig) {
		mem, err := unix.Mmap(-1, 0, 8192, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
		require.NoError(t, err)
		defer unix.Munmap(mem)
		v := []unix.Iovec{{Base: &mem[:1:1][0], Len: 8192}}
		for _, op := range []Op{Read, Write} {
			io := &IO{Op: op, Length: 8192, Iov: v}
			r.do(io)
			require.Equal(t, unix.EFAULT, io.Err)
		}
		r.must(transfer(Read, 0, aligned(t, 4096)))
	})
}
