package virtio

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFeatureBitsStandWhereTheSpecificationPutsThem(t *testing.T) {
	s := NewFeatures(IndirectDesc, EventIdx, Version1, AccessPlatform, RingPacked, InOrder, OrderPlatform,
		SRIOV, NotificationData, NotifConfigData, RingReset, AdminVQ, Suspend, 127)
	require.Equal(t, Features{0x30000000, 0x00000bff, 0, 0x80000000}, s)
	require.Equal(t, "{INDIRECT_DESC EVENT_IDX VERSION_1 ACCESS_PLATFORM RING_PACKED IN_ORDER ORDER_PLATFORM "+
		"SR_IOV NOTIFICATION_DATA NOTIF_CONFIG_DATA RING_RESET ADMIN_VQ SUSPEND bit 127}", s.String())
}

func TestFeatureSet(t *testing.T) {
	s := NewFeatures(3, EventIdx, Version1)
	require.True(t, s.Has(3))
	require.False(t, s.Has(4))
	require.False(t, s.Has(200), "bits that do not exist are not set")
	require.Equal(t, s, s.With(128, 255))
	require.Equal(t, s, s.Without(128, 255))
	require.Equal(t, NewFeatures(3), s.Without(EventIdx, Version1, 5))
	require.Equal(t, NewFeatures(3), s.And(NewFeatures(3, 4)))
	require.Equal(t, NewFeatures(EventIdx, Version1), s.Minus(NewFeatures(3, 4)))
	require.True(t, s.Minus(s).Empty())
	require.False(t, s.Empty())
	require.Equal(t, "{OTHER EVENT_IDX VERSION_1}", s.Describe(Names{3: "OTHER"}))
	require.Equal(t, "{}", Features{}.String())
}

func TestFeatureSelection(t *testing.T) {
	s := NewFeatures(1, EventIdx, Version1)
	require.Equal(t, uint32(0x20000002), s.Dword(0))
	require.Equal(t, uint32(1), s.Dword(1))
	for _, sel := range []uint32{2, 3, 4, 1 << 31, 1<<32 - 1} {
		require.Zero(t, s.Dword(sel), "selection %d", sel)
	}
	var got Features
	for sel := range uint32(6) {
		got = got.WithDword(sel, s.Dword(sel))
	}
	require.Equal(t, s, got)
	require.Equal(t, s, s.WithDword(4, 7).WithDword(1<<32-1, 7))
	require.True(t, s.WithDword(3, 1).Has(96))
}

func TestValidate(t *testing.T) {
	offered := NewFeatures(2, 9, EventIdx, Version1, RingReset)
	for _, c := range []struct {
		name     string
		accepted Features
		wrong    Feature
	}{
		{"all", offered, 0},
		{"the least", NewFeatures(Version1), 0},
		{"nothing", Features{}, Version1},
		{"legacy", NewFeatures(2, EventIdx), Version1},
		{"not offered", NewFeatures(2, 3, Version1), 3},
		{"lowest offender first", NewFeatures(100, RingPacked, Version1), RingPacked},
		{"beyond 64 bits", NewFeatures(100, Version1), 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.accepted.Validate(offered)
			if c.wrong == 0 {
				require.NoError(t, err)
				return
			}
			var e *FeatureError
			require.ErrorAs(t, err, &e)
			require.Equal(t, c.wrong, e.Feature)
			require.ErrorContains(t, err, c.wrong.String())
		})
	}
}
