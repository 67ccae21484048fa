package vring_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

func recordPacked(t *testing.T, cfg vringtest.Config) (*rig, *recorder) {
	r := newRig(t, cfg, true)
	q := r.drv.Queue()
	rec := &recorder{Memory: r.mem, names: map[uint64]string{
		q.Desc: "desc", q.Driver: "driver", q.Device: "device", r.packed().Table(cfg.FirstID): "table",
	}}
	var err error
	r.q, err = vring.NewPacked(rec, q)
	require.NoError(t, err)
	return r, rec
}

func (r *rig) nextAll(t *testing.T, chains []vring.Chain) {
	for i := range chains {
		r.next(t, &chains[i])
	}
}

// What a queue transfers where nothing can be lent, and in which order: the flags
// of a chain's first descriptor before the chain; used descriptors before the
// flags of the first of them before the look at what the driver wants.
func TestPackedTransfersAreFewAndOrdered(t *testing.T) {
	r, rec := recordPacked(t, vringtest.Config{Packed: true, Size: 60, EventIdx: true, Indirect: 4, Start: 58})
	for range 3 {
		r.add(t, segs(seg(1, 1)), segs(seg(2, 2)))
	}
	_, err := r.drv.AddIndirect(segs(seg(1, 1)), segs(seg(2, 2)))
	require.NoError(t, err)
	r.drv.Kick()
	var chains [4]vring.Chain
	r.nextAll(t, chains[:])
	require.Equal(t, []string{
		"read desc+942:2", "read desc+928:32", // 58 and 59, the end of the ring
		"read desc+14:2", "read desc+0:528", // 0, and 32 more to see what comes
		"read desc+32:560",  // 2 to 4, which were seen to be there, and 32 more
		"read table+192:32", // of the fourth buffer ID
	}, rec.take())
	for i := range chains {
		r.q.Push(&chains[i], 2)
	}
	require.Empty(t, rec.take())
	_, err = r.q.Publish()
	require.NoError(t, err)
	require.Equal(t, []string{
		"write desc+936:8", "write desc+8:8", "write desc+40:8", "write desc+72:8",
		"write desc+942:2", "read driver+0:4",
	}, rec.take())
	_, err = r.q.EnableNotifications()
	require.NoError(t, err)
	require.Equal(t, []string{"write device+0:4", "read desc+94:2"}, rec.take())
	_, err = r.q.Publish()
	require.NoError(t, err)
	require.NoError(t, r.q.DisableNotifications())
	require.Empty(t, rec.take(), "nothing to say")
}

// The usual case: each chain is one descriptor that refers to a table.
func TestPackedTransfersOfManyTables(t *testing.T) {
	r, rec := recordPacked(t, vringtest.Config{Packed: true, Size: 64, Indirect: 2, Start: 60})
	for range 40 {
		_, err := r.drv.AddIndirect(segs(seg(1, 1)), nil)
		require.NoError(t, err)
	}
	r.drv.Kick()
	chains := make([]vring.Chain, 40)
	r.nextAll(t, chains)
	transfers := 0
	for _, what := range rec.take() {
		if what[:9] == "read desc" {
			transfers++
		}
	}
	require.Equal(t, 3+4, transfers, "4 chains, and 36")
	chains[7], chains[20] = chains[20], chains[7]
	for i := range chains {
		r.q.Push(&chains[i], 0)
	}
	_, err := r.q.Publish()
	require.NoError(t, err)
	require.Equal(t, []string{
		"write desc+968:56", "write desc+8:568", "write desc+974:2", "read driver+0:4",
	}, rec.take())
	for i := range chains {
		want := uint16(i)
		switch i {
		case 7:
			want = 20
		case 20:
			want = 7
		}
		require.Equal(t, want, r.collect(t).Head)
	}
}

// watcher calls a function after each write of the device.
type watcher struct {
	vring.Memory
	wrote func()
}

func (w *watcher) Lend(uint64, int, vring.Access) ([]byte, error) { return nil, nil }

func (w *watcher) WriteAt(p []byte, addr uint64) error {
	defer w.wrote()
	return w.Memory.WriteAt(p, addr)
}

// Whenever the driver looks it sees all of a batch or nothing, and between its
// descriptors what it wrote itself.
func TestPackedBatchAppearsAtOnce(t *testing.T) {
	r := newRig(t, vringtest.Config{Packed: true, Size: 11, Indirect: 1, Start: 9}, true)
	w := &watcher{Memory: r.mem}
	var err error
	r.q, err = vring.NewPacked(w, r.drv.Queue())
	require.NoError(t, err)
	for round := range 20 {
		var chains [5]vring.Chain
		for i := range chains {
			direct := i * round % 4
			_, err := r.drv.AddMixed(segs(seg(1, 1), seg(2, 2), seg(3, 3))[:max(direct, 1)], nil, direct)
			if err != nil {
				require.ErrorIs(t, err, vringtest.ErrNoRoom)
				_, err = r.drv.AddIndirect(segs(seg(1, 1)), nil)
			}
			require.NoError(t, err)
		}
		r.drv.Kick()
		r.nextAll(t, chains[:])
		for i := range chains {
			r.q.Push(&chains[len(chains)-1-i], 0)
		}
		collected, writes := 0, 0
		w.wrote = func() {
			writes++
			for {
				_, ok, err := r.drv.Collect()
				require.NoError(t, err)
				if !ok {
					break
				}
				collected++
			}
			require.Contains(t, []int{0, len(chains)}, collected, "after write %d", writes)
		}
		_, err := r.q.Publish()
		require.NoError(t, err)
		require.Equal(t, len(chains), collected)
	}
}

// Memory whose longer transfers are seen half done. The driver makes a chain
// available while the device reads a row of descriptors: the flags are there,
// but the rest of the transfer was older.
type torn struct {
	vring.Memory
	during func()
}

func (m *torn) Lend(uint64, int, vring.Access) ([]byte, error) { return nil, nil }

func (m *torn) ReadAt(p []byte, addr uint64) error {
	if len(p) <= 4 || m.during == nil {
		return m.Memory.ReadAt(p, addr)
	}
	if err := m.Memory.ReadAt(p, addr); err != nil {
		return err
	}
	m.during()
	m.during = nil
	var flags [2]byte
	for off := 14; off < len(p); off += 16 { // flags are seen late
		if err := m.Memory.ReadAt(flags[:], addr+uint64(off)); err != nil {
			return err
		}
		copy(p[off:], flags[:])
	}
	return nil
}

func TestPackedTornTransfers(t *testing.T) {
	r := newRig(t, vringtest.Config{Packed: true, Size: 16}, true)
	m := &torn{Memory: r.mem}
	var err error
	r.q, err = vring.NewPacked(m, r.drv.Queue())
	require.NoError(t, err)
	r.add(t, segs(seg(0x1000, 1), seg(0x2000, 2)), nil)
	r.drv.Kick()
	m.during = func() {
		r.add(t, segs(seg(0x3000, 3), seg(0x4000, 4)), nil)
		r.drv.Kick()
		r.add(t, segs(seg(0x5000, 5)), nil)
		r.drv.Kick()
	}
	for _, want := range [][]vring.Segment{
		segs(seg(0x1000, 1), seg(0x2000, 2)), segs(seg(0x3000, 3), seg(0x4000, 4)), segs(seg(0x5000, 5)),
	} {
		var c vring.Chain
		r.next(t, &c)
		require.Equal(t, want, c.Readable)
	}
	require.Nil(t, m.during, "a transfer was torn")
}
