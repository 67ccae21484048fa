package epfuser

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

func TestTheControllerThatIsMeant(t *testing.T) {
	two := []string{"a40000000.pcie-ep", "fe260000.pcie-ep"}
	for _, c := range []struct {
		want string
		have []string
		name string
		err  error
		text string
	}{
		{"", two[:1], two[0], nil, ""},
		{two[1], two, two[1], nil, ""},
		{"", nil, "", ErrNoController, "no PCI endpoint controller"},
		{"", two, "", ErrChoose, "a40000000.pcie-ep, fe260000.pcie-ep: add --epc NAME"},
		{"x", two, "", ErrNoController, "there is no x, but a40000000.pcie-ep"},
	} {
		name, err := choose(c.want, c.have)
		require.Equal(t, c.name, name)
		if c.err == nil {
			require.NoError(t, err)
			continue
		}
		require.ErrorIs(t, err, c.err)
		require.ErrorContains(t, err, c.text)
	}
}

func TestRoomIsWhatTheKernelSays(t *testing.T) {
	i := epfdev.Info{BARAlign: 65536, Features: epfdev.HasSubRange}
	i.BARs[0].Flags = epfdev.BARFree | epfdev.BARResizable
	i.BARs[2].Flags = epfdev.BARFree | epfdev.BAR64Only
	i.BARs[4] = epfdev.BARInfo{Flags: epfdev.BARFree | epfdev.BARFixed, Fixed: 65536}
	require.Equal(t, epc.Room{
		Granule: 65536, SubRanges: true,
		BARs: [6]epc.Place{
			0: {Free: true, Least: 1 << 20}, 2: {Free: true, Wide: true}, 4: {Free: true, Fixed: 65536},
		},
		Doorbell: epc.Doorbell{Kind: epc.DoorbellEach, Offset: 0x40, Size: 65536},
	}, roomOf(&i, &epfdev.Doorbells{Kind: epfdev.DoorbellITS, RangeOffset: 0x40, RangeSize: 65536}))
	require.Equal(t, epc.Doorbell{Kind: epc.DoorbellShared, Exposed: true, BAR: 4, Offset: 0x2dc}, roomOf(&i,
		&epfdev.Doorbells{Kind: epfdev.DoorbellShared, Flags: epfdev.DoorbellExposed, BAR: 4, Offset: 0x2dc}).Doorbell)
	require.Equal(t, epc.NoDoorbell, roomOf(&i, new(epfdev.Doorbells)).Doorbell.Kind)
}

func TestWhatNoFunctionCanDoWithout(t *testing.T) {
	all := epfdev.Info{Features: epfdev.HasMSIX | epfdev.HasCaps, WindowTotal: 1 << 20}
	require.NoError(t, lacks(&all))
	for _, c := range []struct {
		err  error
		take func(i *epfdev.Info)
	}{
		{ErrNoMSIX, func(i *epfdev.Info) { i.Features &^= epfdev.HasMSIX }},
		{ErrNoCaps, func(i *epfdev.Info) { i.Features &^= epfdev.HasCaps }},
		{ErrWindow, func(i *epfdev.Info) { i.WindowTotal = 4096 }},
	} {
		i := all
		c.take(&i)
		require.ErrorIs(t, lacks(&i), c.err)
	}
}

// The parts of a BAR are told in their order, without gaps.
func TestRangesOfABAR(t *testing.T) {
	const page = 4096
	memory := func(n uint64) epfdev.Range { return epfdev.Range{Kind: epfdev.RangeMemory, Size: n * page} }
	bell := epfdev.Range{Kind: epfdev.RangeDoorbell, Size: page}
	for _, c := range []struct {
		bar  epc.BAR
		want []epfdev.Range
	}{
		{epc.BAR{Memory: []epc.Area{{Size: 2 * page}}}, []epfdev.Range{memory(2)}},
		{epc.BAR{Doorbell: epc.Area{Size: page}}, []epfdev.Range{bell}},
		{epc.BAR{Doorbell: epc.Area{Size: page}, Memory: []epc.Area{{Offset: page, Size: 3 * page}}}, []epfdev.Range{bell, memory(3)}},
		{epc.BAR{Doorbell: epc.Area{Offset: 3 * page, Size: page}, Memory: []epc.Area{{Size: 3 * page}}}, []epfdev.Range{memory(3), bell}},
	} {
		require.Equal(t, c.want, ranges(&c.bar))
	}
}
