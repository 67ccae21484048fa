package epfbackend

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

const kib, mib = 1 << 10, 1 << 20

// free returns n places without a limit of any kind.
func free(n int) (p [6]epc.Place) {
	for i := range n {
		p[i].Free = true
	}
	return p
}

func its(granule uint64) epc.Doorbell {
	return epc.Doorbell{Kind: epc.DoorbellEach, Offset: 0x40, Size: granule}
}

// picture draws a layout: what is where, and the BARs.
func (l *layout) picture() string {
	var b strings.Builder
	for i, bar := range l.bars {
		if bar.Size == 0 {
			continue
		}
		fmt.Fprintf(&b, "BAR%d %dK", i, bar.Size/kib)
		if bar.Wide {
			b.WriteString(" wide")
		}
		for _, a := range bar.Memory {
			fmt.Fprintf(&b, " memory@%#x+%dK", a.Offset, a.Size/kib)
		}
		if a := bar.Doorbell; a.Size > 0 {
			fmt.Fprintf(&b, " doorbell@%#x+%dK", a.Offset, a.Size/kib)
		}
		b.WriteString("; ")
	}
	fmt.Fprintf(&b, "registers %d, notify %d@%#x", l.common.bar, l.notify.bar, l.notify.off)
	if l.rung {
		b.WriteString(" rung")
	}
	if l.watched {
		b.WriteString(" watched")
	}
	return b.String()
}

// Where things are on the kinds of controllers that there are.
func TestRoomLayouts(t *testing.T) {
	resizable := free(6) // as on RK3588
	for i := range resizable {
		resizable[i].Least = mib
	}
	wide := [6]epc.Place{0: {Free: true, Wide: true}, 2: {Free: true, Wide: true}, 4: {Free: true, Wide: true}}
	fixed := [6]epc.Place{0: {Free: true, Fixed: mib}, 1: {Free: true, Fixed: 16 * kib}, 3: {Free: true, Fixed: 4 * kib}}
	for name, c := range map[string]struct {
		room   epc.Room
		queues int
		want   string
	}{
		"no doorbell": {
			epc.Room{Granule: 4 * kib, BARs: free(6)},
			1,
			"BAR0 8K memory@0x0+8K; registers 0, notify 0@0x400 watched",
		},
		"ITS": {
			epc.Room{Granule: 4 * kib, BARs: free(6), SubRanges: true, Doorbell: its(4 * kib)},
			1,
			"BAR0 8K memory@0x0+8K; BAR1 4K doorbell@0x0+4K; registers 0, notify 1@0x40 rung",
		},
		"ITS, no sub-ranges": {
			epc.Room{Granule: 4 * kib, BARs: free(6), Doorbell: its(4 * kib)},
			1,
			"BAR0 8K memory@0x0+8K; BAR1 4K doorbell@0x0+4K; registers 0, notify 1@0x40 rung",
		},
		"ITS, RK3588": {
			epc.Room{Granule: 64 * kib, BARs: resizable, SubRanges: true, Doorbell: its(64 * kib)},
			4,
			"BAR0 1024K memory@0x0+1024K; BAR1 1024K memory@0x10000+960K doorbell@0x0+64K; registers 0, notify 1@0x40 rung watched",
		},
		"ITS, RK3588 without sub-ranges": {
			epc.Room{Granule: 64 * kib, BARs: resizable, Doorbell: its(64 * kib)},
			4,
			"BAR0 1024K memory@0x0+1024K; registers 0, notify 0@0x400 watched",
		},
		"ITS, one BAR": {
			epc.Room{Granule: 4 * kib, BARs: free(1), SubRanges: true, Doorbell: its(4 * kib)},
			1,
			"BAR0 16K memory@0x0+12K doorbell@0x3000+4K; registers 0, notify 0@0x3040 rung watched",
		},
		"ITS, one BAR, no sub-ranges": {
			epc.Room{Granule: 4 * kib, BARs: free(1), Doorbell: its(4 * kib)},
			1,
			"BAR0 8K memory@0x0+8K; registers 0, notify 0@0x400 watched",
		},
		"ITS, one small BAR": {
			epc.Room{Granule: 4 * kib, BARs: [6]epc.Place{4: {Free: true, Fixed: 8 * kib}}, SubRanges: true, Doorbell: its(4 * kib)},
			1,
			"BAR4 8K memory@0x0+8K; registers 4, notify 4@0x400 watched",
		},
		"BARs of 64 bits": {
			epc.Room{Granule: 64 * kib, BARs: wide, SubRanges: true, Doorbell: its(64 * kib)},
			1,
			"BAR0 64K wide memory@0x0+64K; BAR2 64K wide doorbell@0x0+64K; registers 0, notify 2@0x40 rung",
		},
		"fixed BARs": {
			epc.Room{Granule: 4 * kib, BARs: fixed, Doorbell: its(4 * kib)},
			1,
			"BAR1 16K memory@0x0+16K; BAR3 4K doorbell@0x0+4K; registers 1, notify 3@0x40 rung",
		},
		"many queues, fixed BARs": {
			epc.Room{Granule: 4 * kib, BARs: fixed},
			1024,
			"BAR0 1024K memory@0x0+1024K; registers 0, notify 0@0x400 watched",
		},
		"exposed doorbell": {
			epc.Room{Granule: 64 * kib, BARs: free(4), Doorbell: epc.Doorbell{
				Kind: epc.DoorbellShared, Exposed: true, BAR: 4, Offset: 0x2dc,
			}},
			2,
			"BAR0 64K memory@0x0+64K; registers 0, notify 4@0x2dc rung",
		},
	} {
		l, err := fit(&c.room, c.queues, c.queues+1)
		require.NoError(t, err, name)
		require.Equal(t, c.want, l.picture(), name)
		check(t, &c.room, &l, c.queues)
	}
	for _, r := range []epc.Room{
		{Granule: 4096},
		{Granule: 4096, BARs: [6]epc.Place{{Free: true, Fixed: 4096}}},
		{Granule: 4096, BARs: [6]epc.Place{5: {Free: true, Wide: true}}},
	} {
		_, err := fit(&r, 1, 2)
		require.ErrorIs(t, err, ErrRoom)
	}
}

// check makes sure that a layout keeps the rules of a controller.
func check(t *testing.T, r *epc.Room, l *layout, queues int) {
	t.Helper()
	type piece struct {
		at  place
		len int
	}
	pieces := []piece{
		{l.common, virtiopci.CommonCfgLen},
		{l.isr, 4},
		{l.device, virtioblk.ConfigLen},
		{l.notify, l.notifyLen},
		{place{l.msix.TableBAR, int(l.msix.TableOffset)}, virtiopci.MSIXTableLen(queues + 1)},
		{place{l.msix.PBABAR, int(l.msix.PBAOffset)}, virtiopci.MSIXPBALen(queues + 1)},
	}
	slices.SortFunc(pieces, func(a, b piece) int { return (a.at.bar-b.at.bar)<<32 + a.at.off - b.at.off })
	for i, p := range pieces {
		require.Zero(t, p.at.off%4)
		bar := &l.bars[p.at.bar]
		if r.Doorbell.Exposed && p.at == l.notify {
			continue
		}
		inside := bar.IsMemory(uint64(p.at.off), uint64(p.len)) ||
			p.at == l.notify && l.rung && bar.Doorbell.Holds(uint64(p.at.off), uint64(p.len))
		require.True(t, inside, "%+v is not where it should be: %s", p, l.picture())
		if i > 0 && pieces[i-1].at.bar == p.at.bar {
			require.LessOrEqual(t, pieces[i-1].at.off+pieces[i-1].len, p.at.off, "overlap: %s", l.picture())
		}
	}
	for i, bar := range l.bars {
		if bar.Size == 0 {
			continue
		}
		p := r.BARs[i]
		require.True(t, p.Free)
		require.Equal(t, p.Wide, bar.Wide)
		require.False(t, p.Wide && l.bars[i+1].Size != 0)
		require.True(t, bar.Size == p.Fixed || p.Fixed == 0 && bar.Size >= max(p.Least, r.Granule) && bar.Size&(bar.Size-1) == 0)
		ranges := append(slices.Clone(bar.Memory), bar.Doorbell)
		slices.SortFunc(ranges, func(a, b epc.Area) int { return int(a.Offset) - int(b.Offset) })
		var end uint64
		n := 0
		for _, a := range ranges {
			if a.Size == 0 {
				continue
			}
			n++
			require.Equal(t, end, a.Offset, "no gaps: %s", l.picture())
			require.Zero(t, a.Size%r.Granule)
			end += a.Size
		}
		require.Equal(t, bar.Size, end)
		require.True(t, n == 1 || r.SubRanges)
		if bar.Doorbell.Size > 0 {
			require.Equal(t, r.Doorbell.Size, bar.Doorbell.Size, "nothing beside the doorbell is shown")
		}
	}
	require.True(t, l.rung || l.watched, "notifications are noticed")
}

// Whatever a controller has, its rules are kept.
func TestRoomProperty(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	fits := 0
	for range 20000 {
		r := epc.Room{Granule: 4096 << random.IntN(5), SubRanges: random.IntN(2) == 0}
		for i := range r.BARs {
			p := &r.BARs[i]
			p.Free = random.IntN(3) != 0
			p.Wide = random.IntN(3) == 0
			if random.IntN(3) == 0 {
				p.Fixed = r.Granule << random.IntN(6)
			} else if random.IntN(3) == 0 {
				p.Least = mib
			}
		}
		r.Doorbell.Kind = epc.DoorbellKind(random.IntN(3))
		if random.IntN(4) == 0 {
			r.Doorbell.Exposed, r.Doorbell.BAR = true, random.IntN(6)
			r.BARs[r.Doorbell.BAR].Free = false
		}
		r.Doorbell.Offset, r.Doorbell.Size = 0x40, r.Granule
		queues := 1 + random.IntN(maxQueues)
		l, err := fit(&r, queues, queues+1)
		if err != nil {
			require.ErrorIs(t, err, ErrRoom)
			continue
		}
		fits++
		check(t, &r, &l, queues)
	}
	require.Greater(t, fits, 10000)
}

// The layout of virtual slots is an interface.
func TestSlotLayoutIsGolden(t *testing.T) {
	for _, trapFree := range []bool{false, true} {
		o := Options{Queues: 3, TrapFree: trapFree}
		o.setDefaults()
		l, err := newLayout(&o)
		require.NoError(t, err)
		d := l.describe(&o)
		var got []string
		for _, c := range d.Capabilities {
			got = append(got, fmt.Sprintf("%x", c.Data))
		}
		want := []string{
			"09001001040000000000000040000000",
			"09001003040000000010000001000000",
			fmt.Sprintf("090010040400000000200000%02x000000", virtioblk.ConfigLen),
			"0900140204000000003000000c00000004000000",
			"0900140500000000000000000000000000000000",
		}
		if trapFree {
			want = want[:4]
		}
		require.Equal(t, want, got)
		require.Equal(t, epc.MSIX{Vectors: 4, TableBAR: 1, PBABAR: 2}, d.MSIX)
		require.Equal(t, [6]uint64{1: 4096, 2: 4096, 4: 16384}, sizes(d))
		require.Equal(t, trapFree, d.Identity.InterruptPin == 0)
	}
}

func sizes(d epc.Description) (s [6]uint64) {
	for i, b := range d.BARs {
		s[i] = b.Size
	}
	return s
}

// What a doorbell of 16 bits costs is known where it is used, and only there.
func TestRoomDecidesFeatures(t *testing.T) {
	store, err := disk.Open("null:1M", disk.Options{Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer store.Close()
	for _, rung := range []bool{false, true} {
		r := epc.Room{Granule: 4096, BARs: free(6), SubRanges: true}
		if rung {
			r.Doorbell = its(4096)
		}
		f, err := New(store, Options{Room: &r})
		require.NoError(t, err)
		require.True(t, f.Options().TrapFree)
		require.Equal(t, !rung, f.Features().Has(virtioblk.BlkSize))
		require.Len(t, f.Doorbells(), 1)
		require.NoError(t, f.Close())
	}
}
