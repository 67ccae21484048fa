package regfile_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

func TestRegistersAtReset(t *testing.T) {
	want := map[string]uint64{
		"device_feature":          uint64(offered.Dword(0)),
		"config_msix_vector":      virtiopci.NoVector,
		"num_queues":              queues,
		"queue_size":              queueSize,
		"queue_msix_vector":       virtiopci.NoVector,
		"queue_notif_config_data": 0,
	}
	h := newHost(t)
	for _, r := range virtiopci.Registers {
		require.Equal(t, want[r.Name], h.get(r.Name), r.Name)
	}
}

// Whatever the length and alignment of a read, it shows the same bytes.
func TestAnyReadIsPartOfTheImage(t *testing.T) {
	h := newHost(t)
	h.negotiate()
	h.enable(1)
	image := h.image()
	for off := range virtiopci.CommonCfgLen + 4 {
		for n := range virtiopci.CommonCfgLen + 4 {
			want := make([]byte, n)
			if off < len(image) {
				copy(want, image[off:])
			}
			got := make([]byte, n)
			for i := range got {
				got[i] = 0xee // what is not there must be overwritten too
			}
			h.ReadCommon(uint64(off), got)
			require.Equal(t, want, got, "%d bytes at %d", n, off)
		}
	}
}

func TestPartialWritesAreIgnored(t *testing.T) {
	for _, r := range virtiopci.Registers {
		for off := r.Offset; off < r.End(); off++ {
			for n := 1; off+n <= r.End(); n++ {
				if _, legal := virtiopci.RegisterAt(off, n); legal || r.ReadOnly {
					continue
				}
				h := newHost(t)
				h.negotiate()
				if r.Width == 8 && n == 7 || n == 5 || n == 6 {
					continue // holds a whole half; see TestWideWrites
				}
				before := h.image()
				h.write(off, n, 0x0101010101010101)
				require.Equal(t, before, h.image(), "%s: %d bytes at %#x", r.Name, n, off)
			}
		}
	}
}

func TestReadOnlyRegistersIgnoreWrites(t *testing.T) {
	for _, r := range virtiopci.Registers {
		if !r.ReadOnly {
			continue
		}
		h := newHost(t)
		before := h.image()
		h.write(r.Offset, r.Width, 0xffffffffffffffff)
		require.Equal(t, before, h.image(), r.Name)
	}
}

func TestWideWrites(t *testing.T) {
	h := newHost(t)
	h.negotiate()
	h.selectQueue(1)

	// Three addresses at once.
	p := make([]byte, 24)
	for i := range p {
		p[i] = byte(i + 1)
	}
	h.WriteCommon(virtiopci.QueueDesc, p)
	h.is("queue_desc", 0x0807060504030201)
	h.is("queue_driver", 0x100f0e0d0c0b0a09)
	h.is("queue_device", 0x1817161514131211)

	// A half, with parts of its neighbours, which do not count.
	h.write(virtiopci.QueueDesc+2, 8, 0xeeee_aabbccdd_eeee)
	h.is("queue_desc", 0xaabbccdd04030201)
	h.is("queue_driver", 0x100f0e0d0c0b0a09)

	// Selection and size in one, as two 16-bit registers in a 32-bit write.
	h.write(virtiopci.QueueSelect, 4, 8<<16|2)
	h.is("queue_select", 2)
	h.is("queue_size", 8)
	h.selectQueue(1)
	h.is("queue_size", queueSize)

	// What lies behind the structure is not there.
	before := h.image()
	h.WriteCommon(virtiopci.CommonCfgLen, p)
	h.WriteCommon(1<<40, p)
	require.Equal(t, before, h.image())
}

func TestHalvesOfAddresses(t *testing.T) {
	for _, name := range []string{"queue_desc", "queue_driver", "queue_device"} {
		h := newHost(t)
		r := h.register(name)
		h.write(r.Offset+4, 4, 0x11223344)
		require.Equal(t, uint64(0x11223344), h.read(r.Offset+4, 4))
		h.write(r.Offset, 4, 0x55667788)
		h.is(name, 0x1122334455667788)
		h.write(r.Offset+4, 4, 0)
		h.is(name, 0x55667788)
	}
}

func TestSelections(t *testing.T) {
	h := newHost(t)
	for _, sel := range []uint32{0, 1, 2, 3, 4, 1 << 31, 0xffffffff} {
		h.set("device_feature_select", uint64(sel))
		h.is("device_feature_select", uint64(sel))
		h.is("device_feature", uint64(offered.Dword(sel)))
	}
	// Each selection keeps its own bits; those that do not exist keep nothing.
	for _, sel := range []uint32{3, 0, 1, 2, 4, 0xffffffff} {
		h.set("driver_feature_select", uint64(sel))
		h.set("driver_feature", uint64(sel)+7)
	}
	for _, sel := range []uint32{0, 1, 2, 3} {
		h.set("driver_feature_select", uint64(sel))
		h.is("driver_feature", uint64(sel)+7)
	}
	h.set("driver_feature_select", 4)
	h.is("driver_feature", 0)
}

// A queue that is not there has size 0, and takes no write (§4.1.4.3.1).
func TestQueueThatIsNotThere(t *testing.T) {
	for _, i := range []int{queues, queues + 1, 0xffff} {
		h := newHost(t)
		h.negotiate()
		h.selectQueue(i)
		before := h.image()
		for _, r := range virtiopci.Registers {
			if r.PerQueue {
				h.set(r.Name, 1)
			}
		}
		require.Equal(t, before, h.image())
		h.is("queue_select", uint64(i))
		h.is("queue_size", 0)
		h.is("queue_enable", 0)
		h.is("queue_msix_vector", virtiopci.NoVector)
		h.setStatus(ready)
		require.Empty(t, h.fn.live)
	}
}

func TestQueuesAreApart(t *testing.T) {
	h := newHost(t)
	h.negotiate()
	for i := range queues {
		h.enable(i)
		h.set("queue_msix_vector", uint64(i+1))
	}
	for i := range queues {
		h.selectQueue(i)
		h.is("queue_size", queueSize>>i)
		h.is("queue_desc", 0x1111_0000_0000_1000*uint64(i+1))
		h.is("queue_msix_vector", uint64(i+1))
		h.is("queue_notify_off", uint64(i))
		h.is("queue_notif_config_data", uint64(i))
		h.is("queue_enable", 1)
		require.Equal(t, uint16(i+1), h.QueueVector(i))
	}
}

func TestQueueSize(t *testing.T) {
	for _, c := range []struct{ write, want uint64 }{
		{1, 1},
		{2, 2},
		{32, 32},
		{queueSize, queueSize},
		{0, queueSize},
		{3, queueSize},
		{queueSize - 1, queueSize},
		{2 * queueSize, queueSize},
		{0x8000, queueSize},
		{0xffff, queueSize},
	} {
		h := newHost(t)
		h.set("queue_size", c.write)
		h.is("queue_size", c.want)
	}
}

// Packed rings have any size (§4.1.4.3.2).
func TestQueueSizeOfPackedRings(t *testing.T) {
	for _, c := range []struct{ write, want uint64 }{
		{1, 1}, {3, 3}, {queueSize - 1, queueSize - 1}, {queueSize, queueSize}, {0, queueSize}, {queueSize + 1, queueSize},
	} {
		h := newHost(t)
		h.negotiate()
		h.set("queue_size", c.write)
		h.is("queue_size", c.want)
		h.set("queue_enable", 1)
		h.setStatus(ready)
		require.EqualValues(t, c.want, h.fn.live[0].Size)
	}
	h := newHost(t)
	h.setStatus(virtio.Acknowledge)
	h.setStatus(known)
	h.accept(offered.Minus(virtio.NewFeatures(virtio.RingPacked)))
	h.setStatus(negotiated)
	h.set("queue_size", 3)
	h.is("queue_size", queueSize)
}

// A vector that does not exist reads back as none (§4.1.5.1.2.1).
func TestVectors(t *testing.T) {
	for _, name := range []string{"config_msix_vector", "queue_msix_vector"} {
		for _, c := range []struct{ write, want uint64 }{
			{0, 0}, {vectors - 1, vectors - 1}, {vectors, virtiopci.NoVector}, {0xfffe, virtiopci.NoVector}, {virtiopci.NoVector, virtiopci.NoVector},
		} {
			h := newHost(t)
			h.set(name, 1)
			h.is(name, 1)
			h.set(name, c.write)
			h.is(name, c.want)
			if name == "config_msix_vector" {
				require.Equal(t, uint16(c.want), h.ConfigVector())
			} else {
				require.Equal(t, uint16(c.want), h.QueueVector(0))
			}
		}
	}
}
