package regfile_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		name   string
		writes []virtio.Status
		want   virtio.Status
	}{
		{"in order", []virtio.Status{1, 3, negotiated, ready}, ready},
		{"two at once", []virtio.Status{known, negotiated, ready}, ready},
		{"repeated", []virtio.Status{1, 1, 3, 3, negotiated, negotiated, ready, ready}, ready},
		{"driver before acknowledge", []virtio.Status{virtio.Driver}, 0},
		{"features too early", []virtio.Status{1, virtio.Acknowledge | virtio.FeaturesOK}, 1},
		{"ready too early", []virtio.Status{known, known | virtio.DriverOK}, known},
		{"features and ready at once", []virtio.Status{known, ready}, known},
		{"bits taken away", []virtio.Status{known, negotiated, known}, negotiated},
		{"reserved bits", []virtio.Status{1, 1 | 0x10, 1 | 0x20}, 1},
		{"needs reset from the driver", []virtio.Status{1 | virtio.NeedsReset}, 1},
		{"nothing but needs reset", []virtio.Status{known, negotiated, ready, virtio.NeedsReset}, ready},
		{"failed", []virtio.Status{known, known | virtio.Failed}, known | virtio.Failed},
		{"after failed", []virtio.Status{known, known | virtio.Failed, negotiated | virtio.Failed}, known | virtio.Failed},
		{"reset after failed", []virtio.Status{known, known | virtio.Failed, 0, 1}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.accept(offered)
			for _, s := range c.writes {
				h.setStatus(s)
			}
			require.Equal(t, c.want, h.status())
			require.Equal(t, c.want.Has(virtio.FeaturesOK), len(h.fn.negotiated) == 1)
		})
	}
}

func TestFeaturesAreRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		accept virtio.Features
		ok     bool
	}{
		{"all", offered, true},
		{"as few as possible", virtio.NewFeatures(virtio.Version1), true},
		{"none", virtio.Features{}, false},
		{"no VERSION_1", offered.Without(virtio.Version1), false},
		{"not offered", offered.With(virtio.InOrder), false},
		{"not offered, of the disk", offered.With(virtioblk.ReadOnly), false},
		{"above 64 bits", offered.With(100), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.setStatus(known)
			h.acceptDwords(c.accept, 0, 1, 2, 3)
			h.setStatus(negotiated)
			require.Equal(t, c.ok, h.status().Has(virtio.FeaturesOK))
			if !c.ok {
				require.Equal(t, known, h.status())
				require.Empty(t, h.fn.negotiated)
				h.setStatus(ready)
				require.Equal(t, known, h.status())

				// The driver may think again (§3.1.1).
				h.acceptDwords(offered, 0, 1, 2, 3)
				h.setStatus(negotiated)
			}
			require.True(t, h.status().Has(virtio.FeaturesOK))
			require.Len(t, h.fn.negotiated, 1)

			// From here on they are fixed.
			was := h.get("driver_feature")
			h.set("driver_feature", 0x5555)
			h.is("driver_feature", was)
		})
	}
}

func TestQueueLife(t *testing.T) {
	h := newHost(t)
	h.setStatus(known)
	h.enable(0)
	h.is("queue_enable", 0) // before FEATURES_OK
	h.accept(offered)
	h.setStatus(negotiated)

	h.set("queue_enable", 2)
	h.is("queue_enable", 0) // nothing but 1 means anything
	q0 := h.enable(0)
	h.is("queue_enable", 1)
	require.Empty(t, h.fn.live) // not before DRIVER_OK

	h.setStatus(ready)
	require.Equal(t, map[int]regfile.Queue{0: q0}, h.fn.live)

	q2 := h.enable(2) // later than DRIVER_OK
	require.Equal(t, map[int]regfile.Queue{0: q0, 2: q2}, h.fn.live)

	// An enabled queue does not move, and is not disabled by a write.
	h.selectQueue(0)
	before := h.image()
	for _, name := range []string{"queue_size", "queue_desc", "queue_driver", "queue_device"} {
		h.set(name, 16)
	}
	h.set("queue_enable", 0)
	h.set("queue_enable", 1)
	require.Equal(t, before, h.image())

	// Only live queues are notified.
	for i := range queues + 2 {
		h.Notify(i)
	}
	require.Equal(t, []int{0, 2}, h.fn.notified)
}

func TestNotifyBeforeDriverOK(t *testing.T) {
	h := newHost(t)
	h.negotiate()
	h.enable(0)
	h.Notify(0)
	require.Empty(t, h.fn.notified)
}

// queue_reset reads 1 until the reset is done, then it and queue_enable read 0
// (§4.1.4.3.2).
func TestQueueReset(t *testing.T) {
	h := newHost(t)
	h.negotiate()
	h.enable(0)
	q1 := h.enable(1)
	h.set("queue_msix_vector", 2)
	h.setStatus(ready)
	h.fn.hold = true

	h.set("queue_reset", 0)
	h.is("queue_reset", 0)
	h.set("queue_reset", 1)
	require.NotContains(t, h.fn.live, 1)
	for range 3 {
		h.is("queue_reset", 1)
		h.is("queue_enable", 1)
		h.set("queue_reset", 1)  // does not begin another
		h.set("queue_enable", 1) // nor start the queue
		h.set("queue_desc", 0x9000)
	}
	h.is("queue_desc", q1.Desc)
	h.Notify(1)
	require.Empty(t, h.fn.notified)
	require.Len(t, h.fn.under, 1)

	h.fn.finish()
	h.is("queue_reset", 0)
	h.is("queue_enable", 0)
	h.is("queue_size", queueSize)
	h.is("queue_desc", 0)
	h.is("queue_msix_vector", virtiopci.NoVector)
	h.selectQueue(0)
	h.is("queue_enable", 1) // the others go on
	require.Contains(t, h.fn.live, 0)

	q1 = h.enable(1)
	require.Equal(t, q1, h.fn.live[1])
}

func TestQueueResetNeedsTheFeature(t *testing.T) {
	h := newHost(t)
	h.setStatus(known)
	h.accept(offered.Without(virtio.RingReset))
	h.setStatus(negotiated)
	h.enable(0)
	h.setStatus(ready)
	h.set("queue_reset", 1)
	h.is("queue_reset", 0)
	h.is("queue_enable", 1)
	require.Contains(t, h.fn.live, 0)
}

func TestQueueResetBeforeDriverOK(t *testing.T) {
	h := newHost(t)
	h.negotiate()
	h.enable(0)
	h.set("queue_reset", 1)
	h.is("queue_reset", 0)
	h.is("queue_enable", 0)
	h.setStatus(ready)
	require.Empty(t, h.fn.live)
}

func TestResetPutsEverythingBack(t *testing.T) {
	h := newHost(t)
	fresh := h.image()
	h.negotiate()
	for i := range queues {
		h.enable(i)
		h.set("queue_msix_vector", 1)
	}
	h.set("config_msix_vector", 1)
	h.set("device_feature_select", 1)
	h.setStatus(ready)
	h.RaiseISR(virtiopci.ISRQueue)
	require.True(t, h.fn.intx)

	h.setStatus(0)
	require.Empty(t, h.fn.live)
	require.Equal(t, fresh, h.image())
	require.Equal(t, 1, h.fn.resets)
	require.False(t, h.fn.intx, "the pin is still asserted")
	var isr [1]byte
	h.ReadISR(0, isr[:])
	require.Zero(t, isr[0])
	require.EqualValues(t, virtiopci.NoVector, h.ConfigVector())
}

// The status reads 0 only once nothing is in flight; the write that asks for it
// is held back for a while, and nothing else happens until then (§2.4.1).
func TestSlowReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.negotiate()
		h.enable(0)
		h.setStatus(ready)
		h.fn.hold = true

		start := time.Now()
		h.setStatus(0)
		require.Equal(t, 2*time.Second, time.Since(start))
		require.Equal(t, ready, h.status())

		start = time.Now()
		h.setStatus(0)
		h.setStatus(1)
		h.set("queue_msix_vector", 1)
		h.Notify(0)
		h.WriteDevice(0, []byte{1})
		h.RaiseISR(virtiopci.ISRQueue)
		require.False(t, h.NeedsReset())
		require.False(t, h.UpdateDeviceConfig(func([]byte) {}))
		require.Zero(t, time.Since(start), "only the write that begins the reset is held back")
		require.Equal(t, ready, h.status())
		require.Len(t, h.fn.under, 1)
		require.Empty(t, h.fn.notified)
		require.False(t, h.fn.intx)

		h.fn.finish()
		require.Zero(t, h.status())
		h.negotiate() // and it can be used again
	})
}

func TestResetThatEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.negotiate()
		h.fn.hold = true
		go func() {
			time.Sleep(300 * time.Millisecond)
			h.fn.finish()
		}()
		start := time.Now()
		h.setStatus(0)
		require.Equal(t, 300*time.Millisecond, time.Since(start))
		require.Zero(t, h.status())
	})
}

func TestResetFromOutside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHost(t)
		h.negotiate()
		h.RaiseISR(virtiopci.ISRConfig)
		h.fn.hold = true
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, h.Reset(ctx), context.DeadlineExceeded)
		require.Equal(t, negotiated, h.status())

		h.fn.finish() // the same reset ends; a later call need not begin another
		h.fn.hold = false
		require.NoError(t, h.Reset(t.Context()))
		require.False(t, h.fn.intx, "the pin is released without another access")
		require.Zero(t, h.status())
	})
}

// A queue reset under way is part of the device reset.
func TestResetDuringQueueReset(t *testing.T) {
	h := newHost(t)
	h.negotiate()
	h.enable(0)
	h.setStatus(ready)
	h.fn.hold = true
	h.set("queue_reset", 1)
	h.fn.hold = false
	h.setStatus(0)
	require.Zero(t, h.status())
	h.negotiate()
	h.enable(0)
	h.fn.finish() // the old reset ends late, and must not touch the new queue
	h.is("queue_enable", 1)
	h.is("queue_reset", 0)
}

func TestNeedsReset(t *testing.T) {
	h := newHost(t)
	require.False(t, h.NeedsReset(), "nobody there")
	require.Zero(t, h.status())

	h.negotiate()
	require.False(t, h.NeedsReset(), "no driver to be told yet")
	require.Equal(t, negotiated|virtio.NeedsReset, h.status())
	h.setStatus(ready) // a driver that does not look cannot clear it
	require.Equal(t, ready|virtio.NeedsReset, h.status())
	require.True(t, h.NeedsReset())

	h.setStatus(0)
	require.Zero(t, h.status())
}

func TestISR(t *testing.T) {
	h := newHost(t)
	read := func() uint8 {
		b := [4]byte{9, 9, 9, 9}
		h.ReadISR(0, b[:]) // a wide read is a read
		require.Equal(t, [3]byte{}, [3]byte(b[1:]))
		return b[0]
	}
	require.Zero(t, read())
	h.RaiseISR(virtiopci.ISRQueue)
	h.RaiseISR(virtiopci.ISRConfig)
	require.True(t, h.fn.intx)
	var b [1]byte
	h.ReadISR(1, b[:]) // not the register
	h.ReadISR(0, nil)
	require.True(t, h.fn.intx)
	require.EqualValues(t, virtiopci.ISRQueue|virtiopci.ISRConfig, read())
	require.False(t, h.fn.intx)
	require.Zero(t, read())
}

func TestDeviceConfig(t *testing.T) {
	h := newHost(t)
	read := func(off uint64, n int) []byte {
		p := make([]byte, n)
		h.ReadDevice(off, p)
		return p
	}
	require.Equal(t, deviceConfig, read(0, 8))
	require.Equal(t, []byte{17, 0, 0}, read(7, 3))
	require.Equal(t, []byte{0}, read(1<<40, 1))

	h.WriteDevice(0, []byte{1})
	require.Equal(t, deviceConfig, read(0, 8), "written before negotiation")
	h.negotiate()
	require.Equal(t, []byte{10, 0xaa}, read(0, 2), "Negotiated may change it")
	h.WriteDevice(7, []byte{1, 2, 3})
	h.WriteDevice(8, []byte{1})
	h.WriteDevice(1<<40, []byte{1})
	require.Equal(t, []byte{1, 0}, read(7, 2))
	h.setStatus(0)
	require.Equal(t, deviceConfig, read(0, 8))
}

func TestGeneration(t *testing.T) {
	h := newHost(t)
	bump := func(v byte) bool { return h.UpdateDeviceConfig(func(c []byte) { c[0] = v }) }
	require.False(t, bump(1), "nobody to be told")
	h.is("config_generation", 1)
	h.negotiate()
	require.False(t, bump(2))
	h.setStatus(ready)
	require.True(t, bump(3))
	h.is("config_generation", 3)
	h.setStatus(0)
	h.is("config_generation", 3) // it is the disk's, not the driver's
	for range 256 {
		bump(4)
	}
	h.is("config_generation", 3) // and wraps
}
