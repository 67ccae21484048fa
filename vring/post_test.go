package vring_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// poster holds back what is posted, and loses it as often as it is told: what comes
// next fails then, and writes it the next time.
type poster struct {
	*recorder
	held  []posted
	fails int
}

type posted struct {
	addr uint64
	data string
}

func (m *poster) Post(p []byte, addr uint64) error {
	m.note("post", addr, len(p))
	m.held = append(m.held, posted{addr, string(p)})
	return nil
}

func (m *poster) ReadAt(p []byte, addr uint64) error {
	if err := m.flush(); err != nil {
		return err
	}
	return m.recorder.ReadAt(p, addr)
}

func (m *poster) WriteAt(p []byte, addr uint64) error {
	if err := m.flush(); err != nil {
		return err
	}
	return m.recorder.WriteAt(p, addr)
}

func (m *poster) flush() error {
	for i, w := range m.held {
		if m.fails > 0 && i == len(m.held)-1 {
			m.fails--
			return vring.ErrUnmapped
		}
		if err := m.Memory.WriteAt([]byte(w.data), w.addr); err != nil {
			return err
		}
	}
	m.held = m.held[:0]
	return nil
}

// Entries and what the device wants to be notified of are posted. What makes entries
// visible is not: it must be written once.
func TestPosted(t *testing.T) {
	for _, packed := range []bool{false, true} {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 8, EventIdx: true}, true)
		cfg := r.drv.Queue()
		mem := &poster{recorder: &recorder{Memory: r.mem, names: map[uint64]string{
			cfg.Desc: "desc", cfg.Driver: "driver", cfg.Device: "device",
		}}}
		var err error
		if packed {
			r.q, err = vring.NewPacked(mem, cfg)
		} else {
			r.q, err = vring.NewSplit(mem, cfg)
		}
		require.NoError(t, err)
		entry, index, event := "post device+4:8", "write device+0:4", "post device+68:2"
		if packed {
			entry, index, event = "post desc+8:8", "write desc+14:2", "post device+0:4"
		}

		head := r.add(t, segs(seg(1, 1)), segs(seg(2, 2)))
		r.drv.Kick()
		var c vring.Chain
		r.next(t, &c)
		r.q.Push(&c, 2)
		mem.take()
		mem.fails = 1
		_, err = r.q.Publish()
		require.ErrorIs(t, err, vring.ErrUnmapped)
		require.Equal(t, []string{entry}, mem.take())
		_, ok, err := r.drv.Collect()
		require.NoError(t, err)
		require.False(t, ok)

		_, err = r.q.Publish()
		require.NoError(t, err)
		require.Equal(t, []string{entry, index}, mem.take()[:2])
		used, ok, err := r.drv.Collect()
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, head, used.Head)

		more, err := r.q.EnableNotifications()
		require.NoError(t, err)
		require.False(t, more)
		require.Equal(t, event, mem.take()[0])
		r.add(t, segs(seg(1, 1)), nil)
		require.True(t, r.drv.Kick())
	}
}
