package vfiouser

import (
	"bytes"
	"crypto/rand"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func access(cmd Command, flags uint32, off uint64, region, count uint32, data ...byte) []byte {
	return message1(cmd, flags, append(encoded(regionAccessSize, RegionAccess{off, region, count}.put), data...))
}

func TestRegionReadAndWriteOfAnyLength(t *testing.T) {
	r := newRig(t, Options{})
	c := r.client(ClientOptions{})
	for _, n := range []int{0, 1, 2, 3, 4, 8, 17, 239, 240, 241, 4096, 65536} {
		want, got := make([]byte, n), make([]byte, n)
		rand.Read(want)
		off := uint64(toyBARSize - n)
		require.NoError(t, c.WriteRegion(0, off, want))
		require.Equal(t, want, r.dev.see().memory[0][off:])
		require.NoError(t, c.ReadRegion(0, off, got))
		require.Equal(t, want, got)
	}
	big := bytes.Repeat([]byte{7}, MaxTransfer)
	require.NoError(t, c.WriteRegion(2, MaxTransfer, big), "the largest message there is")
	got := make([]byte, MaxTransfer)
	require.NoError(t, c.ReadRegion(2, MaxTransfer, got))
	require.Equal(t, big, got)
}

func TestPostedWritesGetNoAnswerAndKeepTheirOrder(t *testing.T) {
	r := newRig(t, Options{})
	c := r.client(ClientOptions{})
	for i := range 1000 {
		require.NoError(t, c.PostRegion(0, 0, []byte{byte(i), byte(i >> 8)}))
	}
	require.NoError(t, c.PostRegion(0, toyBARSize, []byte{1}), "refused, but not aloud")
	got := make([]byte, 2)
	require.NoError(t, c.ReadRegion(0, 0, got))
	require.Equal(t, []byte{0xe7, 0x03}, got)
}

func TestWriteMulti(t *testing.T) {
	r := newRig(t, Options{})
	c := r.client(ClientOptions{})
	require.NoError(t, c.WriteMulti([]Write{{0, 8, []byte{1, 2}}, {0, 9, []byte{3}}, {7, 4, []byte{4, 5, 6, 7, 8, 9, 10, 11}}}))
	require.Equal(t, []byte{1, 3}, r.dev.see().memory[0][8:10])
	require.Equal(t, []byte{4, 5, 6, 7, 8, 9, 10, 11}, r.dev.see().memory[7][4:12])
	require.NoError(t, c.WriteMulti(nil))
	require.ErrorIs(t, c.WriteMulti([]Write{{1, 0, []byte{1}}}), syscall.EACCES)
}

func TestRegionAccessRefused(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	for _, cmd := range []Command{CmdRegionRead, CmdRegionWrite} {
		r.refused(syscall.EINVAL, message1(cmd, 0, make([]byte, 15)))
		r.refused(syscall.EINVAL, access(cmd, 0, 0, 9, 1, 0))
		r.refused(syscall.EINVAL, access(cmd, 0, 0, RegionVGA, 1, 0))
		r.refused(syscall.EINVAL, access(cmd, 0, toyBARSize, 0, 1, 0))
		r.refused(syscall.EINVAL, access(cmd, 0, toyBARSize-1, 0, 2, 0, 0))
		r.refused(syscall.EINVAL, access(cmd, 0, ^uint64(0), 0, 1, 0))
		r.refused(syscall.EINVAL, access(cmd, 0, ^uint64(0), 0, ^uint32(0), 0))
		r.refused(syscall.EINVAL, access(cmd, 0, 0, 2, MaxTransfer+1))
	}
	r.refused(syscall.EACCES, access(CmdRegionWrite, 0, 0, 1, 1, 0))
	r.refused(syscall.EINVAL, access(CmdRegionWrite, 0, 0, 0, 4, 1, 2, 3))
	r.refused(syscall.EINVAL, message1(CmdRegionWriteMulti, 0, make([]byte, 7)))
	multi := make([]byte, 8+24)
	multi[0] = 2
	r.refused(syscall.EINVAL, message1(CmdRegionWriteMulti, 0, multi))
	multi[0] = 1
	le.PutUint32(multi[8+12:], 9)
	r.refused(syscall.EINVAL, message1(CmdRegionWriteMulti, 0, multi))
	le.PutUint64(multi, 1<<63)
	r.refused(syscall.EINVAL, message1(CmdRegionWriteMulti, 0, multi))

	r.dev.setFail(syscall.EBUSY)
	r.refused(syscall.EBUSY, access(CmdRegionRead, 0, 0, 0, 4))
	r.dev.setFail(bytes.ErrTooLarge)
	r.refused(syscall.EIO, access(CmdRegionWrite, 0, 0, 0, 1, 1))
}

func TestTrappedWriteDoesNotAllocate(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	kick := access(CmdRegionWrite, FlagNoReply, 0x3000, 0, 2, 0, 0)
	read := access(CmdRegionRead, 0, 0, 0, 1)
	reply := make([]byte, HeaderSize+regionAccessSize+1)
	// The sender's side does not allocate either, so what is counted is ours.
	n := testing.AllocsPerRun(200, func() {
		r.sock.Write(kick)
		r.sock.Write(read)
		r.sock.Read(reply)
	})
	require.Zero(t, n)
}
