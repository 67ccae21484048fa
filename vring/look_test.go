package vring_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

func TestAvailable(t *testing.T) {
	eachWay(t, func(t *testing.T, packed, transfers bool) {
		r := newRig(t, vringtest.Config{Packed: packed, Size: 4, EventIdx: true}, transfers)
		looks := func(want bool) {
			t.Helper()
			more, err := r.q.Available()
			require.NoError(t, err)
			require.Equal(t, want, more)
		}
		looks(false)
		r.add(t, segs(seg(0x1000, 16)), nil)
		r.add(t, segs(seg(0x2000, 16)), nil)
		looks(false)
		r.drv.Kick()
		looks(true)
		looks(true)
		var a, b vring.Chain
		r.next(t, &a)
		looks(true)
		r.next(t, &b)
		looks(false)

		r.mem.Regions()[0].Hide(true)
		require.Error(t, r.q.Resolve())
		_, err := r.q.Available()
		require.ErrorIs(t, err, vring.ErrUnmapped)
	})
}

// A device that looks for itself is notified of nothing, however often the ring
// comes round, and is notified again once it asks for that.
func TestWhoLooksIsNotNotified(t *testing.T) {
	eachFormat(t, func(t *testing.T, packed bool) {
		for _, event := range []bool{false, true} {
			r := newRig(t, vringtest.Config{Packed: packed, Size: 8, EventIdx: event}, false)
			var c vring.Chain
			_, err := r.q.EnableNotifications()
			require.NoError(t, err)
			for n := range 3 << 16 {
				r.add(t, segs(seg(0x1000, 16)), nil)
				require.Equal(t, n == 0, r.drv.Kick(), "EVENT_IDX %v, chain %d", event, n)
				if ok, err := r.q.Next(&c); !ok || err != nil {
					t.Fatal(ok, err)
				}
				if err := r.q.DisableNotifications(); err != nil {
					t.Fatal(err)
				}
				r.q.Push(&c, 0)
				if _, err := r.q.Publish(); err != nil {
					t.Fatal(err)
				}
				if _, ok, err := r.drv.Collect(); !ok || err != nil {
					t.Fatal(ok, err)
				}
			}
			_, err = r.q.EnableNotifications()
			require.NoError(t, err)
			r.add(t, segs(seg(0x1000, 16)), nil)
			require.True(t, r.drv.Kick())
		}
	})
}
