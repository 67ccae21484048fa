package rc_test

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	slot "github.com/vblk-ep/vblk-ep/epfbackend/epc/vfiouser"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser/leaktest"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

const diskSize = 4 << 20

// serve exports a fresh disk and returns its socket.
func serve(t *testing.T) (socket string) {
	leaktest.Check(t)
	store, err := disk.Open(blktest.File(t, diskSize), disk.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	fn, err := epfbackend.New(store, epfbackend.Options{Serial: "RC"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, fn.Close()) })
	s, err := slot.Listen(filepath.Join(t.TempDir(), "s"), slot.Options{})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- s.Serve(ctx, fn) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-served)
		require.NoError(t, s.Close())
	})
	return s.Path()
}

func dial(t *testing.T, socket string, mem *vringtest.Memory) (*rc.VFIOUser, *rc.Device) {
	bus, err := rc.DialVFIOUser(t.Context(), socket, vfiouser.ClientOptions{Host: rc.MemoryHost{Memory: mem}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = bus.Close() }) // where the test has not
	d, err := rc.Open(bus)
	require.NoError(t, err)
	return bus, d
}

func newMemory(t *testing.T) *vringtest.Memory {
	mem, err := vringtest.NewMemory(vringtest.Range{Base: 0x10_0000, Size: 4 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, mem.Close()) })
	return mem
}

// use brings the driver up, and writes and reads a little.
func use(t *testing.T, d *rc.Device, mem *vringtest.Memory, vector uint16, seed byte) {
	require.NoError(t, d.Negotiate(virtio.Features{^uint32(0), ^uint32(0)}))
	q, err := rc.NewQueue(d, mem, rc.QueueConfig{Size: 32, Vector: vector})
	require.NoError(t, err)
	require.NoError(t, d.Start())
	r, err := q.NewRequest(64 << 10)
	require.NoError(t, err)
	want := bytes.Repeat([]byte{seed, 1, 2, 3}, 16<<10)
	for n := range 5 {
		r.Type, r.Sector = virtioblk.TypeOut, uint64(n)*128
		copy(r.Data(), want)
		status, err := q.Do(r)
		require.NoError(t, err)
		require.Equal(t, virtioblk.StatusOK, status)
		r.Type = virtioblk.TypeIn
		clear(r.Data())
		status, err = q.Do(r)
		require.NoError(t, err)
		require.Equal(t, virtioblk.StatusOK, status)
		require.True(t, bytes.Equal(want, r.Data()))
	}
	c, err := d.Config()
	require.NoError(t, err)
	require.EqualValues(t, diskSize/virtioblk.SectorSize, c.Capacity)
}

func TestVFIOUser(t *testing.T) {
	socket := serve(t)
	mem := newMemory(t)
	bus, d := dial(t, socket, mem)
	require.NoError(t, rc.MapMemory(bus, mem))

	require.NoError(t, d.UseMSIX(d.MSIX.Vectors))
	use(t, d, mem, 1, 1)
	require.NoError(t, d.UseINTx())
	use(t, d, mem, virtiopci.NoVector, 2)
	require.NoError(t, d.Close())
	use(t, d, mem, virtiopci.NoVector, 3) // polled

	require.NoError(t, rc.UnmapMemory(bus, mem))
	require.NoError(t, rc.MapMemory(bus, mem))
	use(t, d, mem, virtiopci.NoVector, 4)
	require.NoError(t, bus.Reset())
	s, err := d.Status()
	require.NoError(t, err)
	require.Zero(t, s)
}

// Memory without a descriptor is reached by messages, rings and all.
func TestVFIOUserMessages(t *testing.T) {
	socket := serve(t)
	mem := newMemory(t)
	bus, d := dial(t, socket, mem)
	for _, r := range mem.Regions() {
		m := rc.RegionOf(r)
		m.FD = -1
		require.NoError(t, bus.Map(m))
	}
	require.NoError(t, d.UseMSIX(d.MSIX.Vectors))
	use(t, d, mem, 1, 5)
	reads, writes := mem.Transfers()
	require.NotZero(t, reads)
	require.NotZero(t, writes)
	require.NoError(t, d.Close())
}

// One host after the other.
func TestVFIOUserAgain(t *testing.T) {
	socket := serve(t)
	for n := range 5 {
		mem := newMemory(t)
		bus, d := dial(t, socket, mem)
		require.NoError(t, rc.MapMemory(bus, mem))
		require.NoError(t, d.UseMSIX(d.MSIX.Vectors))
		use(t, d, mem, 1, byte(n))
		if n%2 == 0 {
			require.NoError(t, d.Reset())
		}
		require.NoError(t, d.Close())
		require.NoError(t, bus.Close())
	}
}
