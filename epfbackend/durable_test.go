package epfbackend_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

func recorded(s setup) (setup, *recorder) {
	rec := new(recorder)
	s.wrap = func(store disk.Store) disk.Store { rec.Store = store; return rec }
	return s, rec
}

func (r *rig) writeback() bool {
	c, err := r.dev.Config()
	require.NoError(r.t, err)
	return c.Writeback
}

func (r *rig) setWriteback(on byte) {
	require.NoError(r.t, r.dev.WriteDeviceConfig(virtioblk.CfgWriteback, []byte{on}))
}

// modified executes all that modifies the disk, and says whether that was made
// durable at once. All of it has to be, or none.
func modified(r *rig, rec *recorder) bool {
	r.t.Helper()
	durable := modifications(r, rec)
	require.True(r.t, durable[0] == durable[1] && durable[1] == durable[2], "%v", durable)
	return durable[0]
}

// modifications executes all that modifies the disk, and says of each whether it was
// made durable at once.
func modifications(r *rig, rec *recorder) (durable []bool) {
	r.t.Helper()
	rec.take()
	r.must(virtioblk.TypeOut, 0, make([]byte, sector))
	r.must(virtioblk.TypeDiscard, 0, ranges(virtioblk.Range{NumSectors: 8}))
	r.must(virtioblk.TypeWriteZeroes, 0, ranges(virtioblk.Range{NumSectors: 8}))
	for _, o := range rec.take() {
		if o.Op != disk.Flush {
			durable = append(durable, o.Durable)
		}
	}
	require.Len(r.t, durable, 3)
	return durable
}

func TestWriteCacheMode(t *testing.T) {
	for _, c := range []struct {
		name         string
		writeThrough bool
		refuse       []virtio.Feature
		durable      bool
		writeback    bool // in the configuration
	}{
		{"write-back", false, nil, false, true},
		{"write-through", true, nil, true, false},
		{"without CONFIG_WCE", false, []virtio.Feature{virtioblk.ConfigWCE}, false, true},
		{"without FLUSH", false, []virtio.Feature{virtioblk.Flush}, true, false},
		{"with neither", false, []virtio.Feature{virtioblk.Flush, virtioblk.ConfigWCE}, true, false},
		{"write-through with neither", true, []virtio.Feature{virtioblk.Flush, virtioblk.ConfigWCE}, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, rec := recorded(setup{options: epfbackend.Options{WriteThrough: c.writeThrough}, refuse: c.refuse})
			r := newRig(t, s)
			require.Equal(t, c.writeback, r.writeback())
			require.Equal(t, c.durable, modified(r, rec))

			// Another driver finds what the first one found.
			r.refuse = nil
			r.start()
			require.Equal(t, !c.writeThrough, r.writeback())
			require.Equal(t, c.writeThrough, modified(r, rec))
		})
	}
}

func TestWriteCacheToggled(t *testing.T) {
	s, rec := recorded(setup{})
	r := newRig(t, s)
	for range 3 {
		require.False(t, modified(r, rec))
		r.setWriteback(0)
		require.False(t, r.writeback())
		require.Eventually(t, func() bool { // no flush will follow from the driver
			for _, o := range rec.take() {
				if o.StoreFlushing {
					return true
				}
			}
			return false
		}, patience, 1)
		require.True(t, modified(r, rec))
		r.setWriteback(1)
		require.True(t, r.writeback())
	}
	for range 1000 { // and not without bound
		r.setWriteback(0)
		r.setWriteback(1)
	}
	r.setWriteback(0)
	r.start() // a reset puts it back
	require.True(t, r.writeback())
	require.False(t, modified(r, rec))
}

// Only a driver that negotiated CONFIG_WCE may change the mode, and nothing else
// of the configuration can be written.
func TestConfigIsReadOnly(t *testing.T) {
	s, rec := recorded(setup{refuse: []virtio.Feature{virtioblk.ConfigWCE}})
	r := newRig(t, s)
	before, err := r.dev.Config()
	require.NoError(t, err)
	require.NoError(t, r.dev.WriteDeviceConfig(0, make([]byte, virtioblk.ConfigLen)))
	after, err := r.dev.Config()
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.False(t, modified(r, rec))

	r.refuse = nil
	r.start()
	require.NoError(t, r.dev.WriteDeviceConfig(0, make([]byte, virtioblk.ConfigLen)))
	after, err = r.dev.Config()
	require.NoError(t, err)
	before.Writeback = false
	require.Equal(t, before, after)
	require.True(t, modified(r, rec))
}

func TestFlushReachesTheDisk(t *testing.T) {
	s, rec := recorded(setup{})
	r := newRig(t, s)
	rec.take()
	r.must(virtioblk.TypeFlush, 0, nil)
	require.Equal(t, []op{{Op: disk.Flush}}, rec.take())
	r.unplug() // and so does the end of the attachment
	require.Equal(t, []op{{Op: disk.Flush, StoreFlushing: true}}, rec.take())
}
