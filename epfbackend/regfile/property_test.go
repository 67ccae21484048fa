package regfile_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// abuse does what the bytes say: accesses of all structures, resets from outside,
// interrupts, ends of resets. function complains if it is told nonsense.
func abuse(t testing.TB, script []byte) {
	h := newHost(t)
	next := func() (b byte) {
		if len(script) > 0 {
			b, script = script[0], script[1:]
		}
		return b
	}
	bytes := func() []byte {
		n := min(int(next()&31), len(script))
		p := script[:n:n]
		script = script[n:]
		return p
	}
	for len(script) > 0 {
		switch next() % 11 {
		case 0, 1, 2:
			h.WriteCommon(uint64(next()%(virtiopci.CommonCfgLen+8)), bytes())
		case 3:
			r := virtiopci.Registers[int(next())%len(virtiopci.Registers)]
			h.set(r.Name, uint64(next())|uint64(next())<<8)
		case 4:
			h.setStatus(virtio.Status(next()))
		case 5:
			h.accept(offered)
			for _, s := range []virtio.Status{1, known, negotiated, ready} {
				if s <= virtio.Status(next()) {
					h.setStatus(s)
				}
			}
		case 6:
			h.enable(int(next()) % queues)
		case 7:
			h.Notify(int(next()))
			h.RaiseISR(next())
		case 8:
			h.NeedsReset()
			h.UpdateDeviceConfig(func(c []byte) { c[0]++ })
			h.WriteDevice(uint64(next()), bytes())
		case 9:
			// Only queue resets are held: a device reset would hold the test back.
			h.fn.hold = h.status().Has(virtio.DriverOK)
			h.set("queue_reset", 1)
			h.fn.hold = false
		case 10:
			h.fn.finish()
		}
		h.invariants()
	}
}

// invariants are what is true whatever a driver does.
func (h *host) invariants() {
	t := h.t
	s := h.status()
	require.Zero(t, s&0x30, "reserved status bits")
	live := s.Has(virtio.DriverOK)
	require.True(t, live || len(h.fn.live) == 0, "queues run without DRIVER_OK")
	require.True(t, !live || s.Has(virtio.FeaturesOK))
	packed := s.Has(virtio.FeaturesOK) && h.fn.negotiated[len(h.fn.negotiated)-1].Has(virtio.RingPacked)
	was := h.get("queue_select")
	for i := range queues {
		h.selectQueue(i)
		size := h.get("queue_size")
		require.True(t, size >= 1 && size <= queueSize && (packed || size&(size-1) == 0))
		if q, runs := h.fn.live[i]; runs {
			h.is("queue_enable", 1)
			h.is("queue_reset", 0)
			h.is("queue_desc", q.Desc)
			h.is("queue_size", uint64(q.Size))
		} else if live {
			require.Equal(t, h.get("queue_reset"), h.get("queue_enable"), "enabled, but nobody runs it")
		}
		v := h.get("queue_msix_vector")
		require.True(t, v < vectors || v == virtiopci.NoVector)
	}
	h.set("queue_select", was)
}

func TestAnyAccesses(t *testing.T) {
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 1))
		script := make([]byte, 400)
		for i := range script {
			script[i] = byte(rng.Uint32())
		}
		abuse(t, script)
	}
}

// Random accesses never panic, never block, and leave a legal state.
func FuzzAccesses(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{5, 0xff, 0xff, 0xff, 0xff, 6, 0, 6, 1, 7, 0, 1, 9, 10, 6, 0})         // a queue's life
	f.Add([]byte{4, 1, 4, 3, 5, 0, 0, 16, 0, 4, 0xff, 4, 0, 8, 8, 3, 1, 2, 3})         // a device's
	f.Add([]byte{0, 0x20, 24, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0x16, 4, 1, 0, 8, 0})         // wide accesses
	f.Add([]byte{5, 0xff, 0xff, 0xff, 0xff, 6, 0, 9, 4, 0, 5, 0xff, 0xff, 0xff, 0xff}) // resets that meet
	f.Fuzz(func(t *testing.T, script []byte) { abuse(t, script) })
}
