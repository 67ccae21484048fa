package epfbackend_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

func TestOptions(t *testing.T) {
	for _, o := range []epfbackend.Options{
		{},
		{Queues: 1024, QueueSize: 4},
		{QueueSize: 32768},
		{Serial: strings.Repeat("~", 20)},
	} {
		require.NoError(t, o.Check())
	}
	for what, o := range map[string]epfbackend.Options{
		"queues=-1":        {Queues: -1},
		"queues=1025":      {Queues: 1025},
		"queue-size=2":     {QueueSize: 2},
		"queue-size=100":   {QueueSize: 100},
		"queue-size=65536": {QueueSize: 65536},
		"queue-size=-4":    {QueueSize: -4},
		"21 characters":    {Serial: strings.Repeat("x", 21)},
		"printable":        {Serial: "a\tb"},
		"ASCII":            {Serial: "ä"},
	} {
		err := o.Check()
		require.ErrorIs(t, err, epfbackend.ErrOption)
		require.ErrorContains(t, err, what)
		_, err = epfbackend.New(&recorder{}, o)
		require.ErrorIs(t, err, epfbackend.ErrOption)
	}
}

// What is offered follows from the disk.
func TestWhatIsOffered(t *testing.T) {
	always := virtio.NewFeatures(
		virtio.Version1, virtio.AccessPlatform, virtio.OrderPlatform, virtio.IndirectDesc, virtio.EventIdx, virtio.RingReset,
		virtioblk.SegMax, virtioblk.BlkSize, virtioblk.HasTopology, virtioblk.Flush, virtioblk.ConfigWCE)
	s, _ := recorded(setup{path: "null:1G", options: epfbackend.Options{Queues: 3, QueueSize: 1024}})
	claim := s.wrap
	s.wrap = func(store disk.Store) disk.Store {
		rec := claim(store).(*recorder)
		rec.change = func(i *disk.Info) {
			i.LogicalBlock, i.PhysicalBlock, i.AlignmentOffset = 4096, 16384, 8192
			i.MinIO, i.OptIO = 16384, 1<<20
			i.Discard = disk.RangeLimits{Supported: true, Granularity: 65536, MaxBytes: 1 << 40}
			i.WriteZeroes = disk.RangeLimits{Supported: true, MaxBytes: 1 << 20}
			i.ZeroUnmaps = true
		}
		return rec
	}
	r := newRig(t, s)
	require.Equal(t, always.With(virtioblk.MQ, virtioblk.Discard, virtioblk.WriteZeroes), r.dev.Accepted())
	c, err := r.dev.Config()
	require.NoError(t, err)
	require.Equal(t, virtioblk.Config{
		Capacity: 1 << 30 / sector, SegMax: 254, BlkSize: 4096,
		Topology:  virtioblk.Topology{PhysicalBlockExp: 2, AlignmentOffset: 2, MinIOSize: 4, OptIOSize: 256},
		Writeback: true, NumQueues: 3,
		Discard:     virtioblk.Limits{MaxSectors: 1 << 21, MaxSeg: 16, Alignment: 128},
		WriteZeroes: virtioblk.Limits{MaxSectors: 2048, MaxSeg: 16},
		MayUnmap:    true,
	}, c)
}
