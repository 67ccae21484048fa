package regfile_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

var (
	// usual is what a writable disk that discards wants, and usualTransport a
	// controller whose doorbell is an interrupt controller's register.
	usual = virtio.NewFeatures(virtio.Version1, virtio.AccessPlatform, virtio.OrderPlatform, virtio.RingPacked,
		virtio.IndirectDesc, virtioblk.SegMax, virtioblk.ConfigWCE, virtioblk.Discard, virtioblk.WriteZeroes)
	usualTransport = regfile.Transport{PackedRings: true, Queues: 1, LogicalBlock: 512}
)

// The word with which stock drivers were seen to bind.
const usualWord = 0x10006817

func TestMirroredWords(t *testing.T) {
	transport := func(change func(*regfile.Transport)) regfile.Transport {
		tr := usualTransport
		change(&tr)
		return tr
	}
	wide := transport(func(tr *regfile.Transport) { tr.Doorbell32 = true })
	for _, c := range []struct {
		name   string
		wanted virtio.Features
		on     regfile.Transport
		word   uint32
		lost   []virtio.Feature
	}{
		{"the usual disk", usual, usualTransport, usualWord, nil},
		{"least of all", virtio.NewFeatures(virtio.Version1, virtio.AccessPlatform, virtio.OrderPlatform), usualTransport, 0x13, []virtio.Feature{}},
		{"topology", usual.With(virtioblk.HasTopology), usualTransport, usualWord | 1<<10, nil},
		{"lifetime and secure erase", usual.With(virtioblk.HasLifetime, virtioblk.SecureErase), usualTransport, usualWord | 1<<15 | 1<<16, nil},
		{"what the twin costs", usual.With(virtioblk.Flush, virtioblk.BlkSize), usualTransport, usualWord, []virtio.Feature{virtioblk.BlkSize, virtioblk.Flush}},
		{"what no evidence tells", usual.With(virtio.EventIdx, virtio.InOrder, virtio.RingReset, virtio.AdminVQ), usualTransport, usualWord, []virtio.Feature{virtio.EventIdx, virtio.InOrder, virtio.RingReset, virtio.AdminVQ}},
		{"block size by a wide doorbell", usual.With(virtioblk.BlkSize), wide, usualWord | 1<<6, nil},
		{"notification data by a wide doorbell", usual.With(virtio.NotificationData), wide, usualWord | 1<<6, nil},
		{"several queues", usual.With(virtioblk.MQ), transport(func(tr *regfile.Transport) { tr.Queues = 4 }), usualWord | 1<<12, nil},
		{"several queues that are one", usual.With(virtioblk.MQ), usualTransport, usualWord, []virtio.Feature{virtioblk.MQ}},
		{"read-only", usual.With(virtioblk.ReadOnly), transport(func(tr *regfile.Transport) { tr.ReadOnly = true }), usualWord&^(3<<13) | 1<<5, []virtio.Feature{virtioblk.Discard, virtioblk.WriteZeroes}},
		{"read-only, but is not", usual.With(virtioblk.ReadOnly), usualTransport, usualWord, []virtio.Feature{virtioblk.ReadOnly}},
		{"split rings only", usual, transport(func(tr *regfile.Transport) { tr.PackedRings = false }), usualWord &^ (1 << 2), []virtio.Feature{virtioblk.SegMax, virtio.RingPacked}},
		{"zones and SCSI", usual.With(virtioblk.HasZoned, 7), usualTransport, usualWord, []virtio.Feature{7, virtioblk.HasZoned}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := regfile.Solve(c.wanted, c.on)
			require.NoError(t, err)
			require.Equalf(t, c.word, m.Word, "%#x, not %#x", m.Word, c.word)
			var lost []virtio.Feature
			for _, l := range m.Lost {
				lost = append(lost, l.Feature)
			}
			require.ElementsMatch(t, c.lost, lost)
		})
	}
}

// TestVerdicts holds the verdict on every pair of bits: what is offered when
// either of the two is wanted by itself, on the usual transport and on the most
// capable one.
func TestVerdicts(t *testing.T) {
	able := regfile.Transport{PackedRings: true, Doorbell32: true, Queues: 2, LogicalBlock: 4096}
	const (
		no = iota
		if32
		ifMany
		ifReadOnly
		yes
	)
	verdicts := [32]int{
		0: yes, 1: yes, 2: yes, 3: no, 4: yes, 5: ifReadOnly, 6: if32, 7: no, 8: no, 9: no, 10: yes, 11: yes,
		12: ifMany, 13: yes, 14: yes, 15: yes, 16: yes, 17: no, 18: yes, 19: yes, 20: yes, 21: yes, 22: yes, 23: yes,
		24: no, 25: yes, 26: yes, 27: yes, 28: yes, 29: no, 30: no, 31: yes,
	}
	must := virtio.NewFeatures(virtio.Version1, virtio.AccessPlatform, virtio.OrderPlatform)
	offers := func(f virtio.Feature, on regfile.Transport) bool {
		m, err := regfile.Solve(must.With(f), on)
		require.NoError(t, err)
		require.Equal(t, virtio.Features{m.Word, m.Word, m.Word, m.Word}, m.Offered)
		require.NotEqual(t, m.Offered.Has(f), len(m.Lost) == 1, "what is not offered is lost, and nothing else")
		return m.Offered.Has(f)
	}
	for n, v := range verdicts {
		for f := virtio.Feature(n); f < 128; f += 32 {
			require.Equalf(t, v == yes, offers(f, usualTransport), "%v on the usual transport", f)
			require.Equalf(t, v == yes || v == if32 || v == ifMany, offers(f, able), "%v on an able one", f)
			ro := usualTransport
			ro.ReadOnly = true
			require.Equalf(t, v == ifReadOnly || v == yes && n != 13 && n != 14 && n != 16, offers(f, ro), "%v of a read-only disk", f)
		}
	}
}

func TestMirrorSaysWhy(t *testing.T) {
	tr := usualTransport
	tr.LogicalBlock = 4096
	m, err := regfile.Solve(usual.With(virtioblk.Flush, virtioblk.BlkSize, virtio.EventIdx), tr)
	require.NoError(t, err)
	require.Len(t, m.Lost, 3)
	require.Equal(t, "BLK_SIZE (bit 6) is lost: it cannot be offered without NOTIFICATION_DATA (bit 38): "+
		"the doorbell takes only 16 bits of data, and a driver that accepts it writes 32; "+
		"the host sees blocks of 512 bytes where the disk has 4096", m.Lost[0].String())
	require.Equal(t, "FLUSH (bit 9) is lost: it cannot be offered without ADMIN_VQ (bit 41): "+
		"a driver that accepts it sets up an administration queue, which is not there; "+
		"drivers that know the writeback byte flush all the same", m.Lost[1].String())
	require.Contains(t, m.Lost[2].String(), "EVENT_IDX (bit 29) is lost: ")
	require.EqualValues(t, 512, m.BlockSize)

	m, err = regfile.Solve(usual.Without(virtioblk.ConfigWCE).With(virtioblk.Flush), tr)
	require.NoError(t, err)
	require.Contains(t, m.Lost[0].Reason, "every write must be durable before it completes")

	split := usualTransport
	split.PackedRings = false
	m, err = regfile.Solve(usual, split)
	require.NoError(t, err)
	require.Equal(t, "SEG_MAX (bit 2) is lost: it cannot be offered without RING_PACKED (bit 34): "+
		"the device does not serve packed virtqueues; a request has one data segment", m.Lost[0].String())

	tr.Doorbell32 = true
	m, err = regfile.Solve(usual.With(virtioblk.BlkSize), tr)
	require.NoError(t, err)
	require.EqualValues(t, 4096, m.BlockSize)
}

// What comes along with a wanted bit binds the device as if it had been wanted.
func TestDutiesOfTwins(t *testing.T) {
	m, err := regfile.Solve(usual, usualTransport)
	require.NoError(t, err)
	duties := map[virtio.Feature]regfile.Duty{}
	for _, d := range m.Duties {
		require.True(t, m.Offered.Has(d.Feature))
		duties[d.Feature] = d
	}
	for _, came := range []virtio.Feature{virtioblk.SizeMax, virtioblk.HasGeometry} {
		require.Contains(t, duties, came)
		require.False(t, duties[came].Wanted)
	}
	require.True(t, duties[virtioblk.SegMax].Wanted)
	require.True(t, strings.HasPrefix(duties[virtioblk.SizeMax].String(), "SIZE_MAX (bit 1): size_max "))
	require.NotContains(t, duties, virtioblk.Flush)
}

func TestMirrorNeedsTheTransportBits(t *testing.T) {
	for _, f := range []virtio.Feature{virtio.Version1, virtio.AccessPlatform, virtio.OrderPlatform} {
		_, err := regfile.Solve(usual.Without(f, f-32), usualTransport)
		require.ErrorIs(t, err, regfile.ErrMirror)
		require.ErrorContains(t, err, f.String())
	}
}
