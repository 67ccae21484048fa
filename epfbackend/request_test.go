package epfbackend_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk/disktest"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

func TestIdentifier(t *testing.T) {
	for _, c := range []struct {
		serial string
		room   int
		want   string
	}{
		{"SCRATCH", 20, "SCRATCH"},
		{"SCRATCH", 64, "SCRATCH"},
		{"SCRATCH", 3, "SCR"},
		{"SCRATCH", 0, ""},
		{"01234567890123456789", 20, "01234567890123456789"}, // no NUL at the end
		{"01234567890123456789", 21, "01234567890123456789"},
	} {
		r := newRig(t, setup{options: epfbackend.Options{Serial: c.serial}})
		want := bytes.Repeat([]byte{0xee}, c.room)
		n := copy(want, append([]byte(c.want), make([]byte, virtioblk.IDLen-len(c.want))...))
		require.LessOrEqual(t, n, virtioblk.IDLen)
		got := r.must(virtioblk.TypeGetID, 5, bytes.Repeat([]byte{0xee}, c.room))
		require.Equal(t, want, got)
	}
}

// Without a serial number of the operator's, the disk's own is used.
func TestIdentifierOfTheDisk(t *testing.T) {
	r := newRig(t, setup{})
	require.NotEmpty(t, r.store.Info().Serial)
	got := r.must(virtioblk.TypeGetID, 0, make([]byte, virtioblk.IDLen))
	require.Equal(t, r.store.Info().Serial, string(bytes.TrimRight(got, "\x00")))
}

func TestUnsupported(t *testing.T) {
	r := newRig(t, setup{})
	for _, kind := range []virtioblk.RequestType{
		2, 3, 5, 6, 7, 9, 12, 15, 16, 18, 20, 22, 24, 26, 255, 1 << 16, 1 << 31, 0xffffffff,
		virtioblk.TypeGetLifetime, virtioblk.TypeSecureErase,
	} {
		for _, n := range []int{0, 16, sector} {
			r.fails(virtioblk.StatusUnsupp, kind, 0, make([]byte, n))
		}
	}
	require.False(t, r.fn.Features().Has(virtioblk.SecureErase))
	require.False(t, r.fn.Features().Has(virtioblk.HasLifetime))
}

func TestLifetime(t *testing.T) {
	want := virtioblk.Lifetime{PreEOL: 2, TypeA: 3, TypeB: 4}
	r := newRig(t, setup{wrap: func(s disk.Store) disk.Store {
		return &recorder{Store: s, change: func(i *disk.Info) { i.Lifetime = &disk.Lifetime{PreEOL: 2, TypeA: 3, TypeB: 4} }}
	}})
	require.True(t, r.fn.Features().Has(virtioblk.HasLifetime))
	require.Equal(t, want, virtioblk.DecodeLifetime(r.must(virtioblk.TypeGetLifetime, 0, make([]byte, virtioblk.LifetimeLen))))
}

func ranges(list ...virtioblk.Range) []byte {
	b := make([]byte, len(list)*virtioblk.RangeLen)
	for i, g := range list {
		g.Encode(b[i*virtioblk.RangeLen:])
	}
	return b
}

func TestSecureErase(t *testing.T) {
	rec := &recorder{
		change: func(i *disk.Info) {
			i.SecureErase = disk.RangeLimits{Supported: true, Granularity: 4096, MaxBytes: 1 << 20}
		},
		does: []disk.Op{disk.SecureErase},
	}
	r := newRig(t, setup{wrap: func(s disk.Store) disk.Store { rec.Store = s; return rec }})
	require.True(t, r.fn.Features().Has(virtioblk.SecureErase))
	c, err := r.dev.Config()
	require.NoError(t, err)
	require.Equal(t, virtioblk.Limits{MaxSectors: 2048, MaxSeg: 16, Alignment: 8}, c.SecureErase)

	r.must(virtioblk.TypeSecureErase, 0, ranges(virtioblk.Range{Sector: 8, NumSectors: 16}))
	require.Equal(t, []op{{Op: disk.SecureErase, Off: 8 * sector, Len: 16 * sector}}, rec.take())
	r.fails(virtioblk.StatusUnsupp, virtioblk.TypeSecureErase, 0, ranges(virtioblk.Range{NumSectors: 8, Flags: virtioblk.RangeUnmap}))
}

func TestRanges(t *testing.T) {
	engines(t, func(t *testing.T, o epfbackend.Options) {
		for _, kind := range []virtioblk.RequestType{virtioblk.TypeDiscard, virtioblk.TypeWriteZeroes} {
			for _, flags := range []uint32{0, virtioblk.RangeUnmap} {
				if kind == virtioblk.TypeDiscard && flags != 0 {
					continue
				}
				eraseSome(t, o, kind, flags)
			}
		}
	})
}

// eraseSome erases two blocks, an empty range and a third block, and looks at what
// is left.
func eraseSome(t *testing.T, o epfbackend.Options, kind virtioblk.RequestType, flags uint32) {
	r := newRig(t, setup{options: o})
	const block = 64 << 10
	data := pattern(8*block, 1)
	r.must(virtioblk.TypeOut, 0, data)
	sectors := func(n int) uint64 { return uint64(n * block / sector) }
	r.must(kind, 0, ranges(
		virtioblk.Range{Sector: sectors(1), NumSectors: uint32(sectors(2)), Flags: flags},
		virtioblk.Range{Sector: sectors(4), NumSectors: 0, Flags: flags},
		virtioblk.Range{Sector: sectors(6), NumSectors: uint32(sectors(1)), Flags: flags},
	))
	clear(data[block : 3*block])
	clear(data[6*block : 7*block])
	require.True(t, bytes.Equal(data, r.must(virtioblk.TypeIn, 0, make([]byte, len(data)))), "%v %d", kind, flags)
	r.must(virtioblk.TypeFlush, 0, nil)
	require.True(t, bytes.Equal(data, r.onDisk(0, len(data))))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(r.path, &st))
	if kind == virtioblk.TypeDiscard || flags != 0 {
		require.EqualValues(t, 5*block, st.Blocks*512, "no hole in the file")
	}
}

func TestRangesThatAreWrong(t *testing.T) {
	const end = diskSize / sector
	many := make([]virtioblk.Range, 17)
	for i := range many {
		many[i] = virtioblk.Range{Sector: uint64(i), NumSectors: 1}
	}
	r := newRig(t, setup{})
	data := pattern(diskSize/2, 1)
	r.must(virtioblk.TypeOut, 0, data)
	for _, c := range []struct {
		name string
		data []byte
		want virtioblk.Status
	}{
		{"none", nil, virtioblk.StatusIOErr},
		{"incomplete", make([]byte, 15), virtioblk.StatusIOErr},
		{"one and a half", ranges(many[:2]...)[:24], virtioblk.StatusIOErr},
		{"too many", ranges(many...), virtioblk.StatusIOErr},
		{"too long", ranges(virtioblk.Range{NumSectors: 1<<21 + 1}), virtioblk.StatusIOErr},
		{"behind the end", ranges(virtioblk.Range{Sector: end, NumSectors: 1}), virtioblk.StatusIOErr},
		{"over the end", ranges(virtioblk.Range{Sector: end - 1, NumSectors: 2}), virtioblk.StatusIOErr},
		{"wraps around", ranges(virtioblk.Range{Sector: ^uint64(0), NumSectors: 1}), virtioblk.StatusIOErr},
		{"wraps around in bytes", ranges(virtioblk.Range{Sector: 1 << 55, NumSectors: 1}), virtioblk.StatusIOErr},
		{"the second of two", ranges(many[0], virtioblk.Range{Sector: end, NumSectors: 1}), virtioblk.StatusIOErr},
		{"reserved flags", ranges(virtioblk.Range{NumSectors: 1, Flags: 2}), virtioblk.StatusUnsupp},
		{"reserved flags in the second", ranges(many[0], virtioblk.Range{NumSectors: 1, Flags: 1 << 31}), virtioblk.StatusUnsupp},
	} {
		for _, kind := range []virtioblk.RequestType{virtioblk.TypeDiscard, virtioblk.TypeWriteZeroes} {
			t.Run(c.name, func(t *testing.T) { r.fails(c.want, kind, 0, c.data) })
		}
	}
	r.fails(virtioblk.StatusUnsupp, virtioblk.TypeDiscard, 0, ranges(virtioblk.Range{NumSectors: 1, Flags: virtioblk.RangeUnmap}))
	require.True(t, bytes.Equal(data, r.onDisk(0, len(data))), "something was executed")
	r.must(virtioblk.TypeWriteZeroes, 0, ranges(many[:16]...))
}

// A range is bounded, however large the disk is.
func TestLongRanges(t *testing.T) {
	const limit = 1 << 30 / sector
	r := newRig(t, setup{path: newFile(t, 3<<30)})
	c, err := r.dev.Config()
	require.NoError(t, err)
	require.LessOrEqual(t, c.Discard.MaxSectors, uint32(limit))
	require.LessOrEqual(t, c.WriteZeroes.MaxSectors, uint32(limit))
	for _, kind := range []virtioblk.RequestType{virtioblk.TypeDiscard, virtioblk.TypeWriteZeroes} {
		r.fails(virtioblk.StatusIOErr, kind, 0, ranges(virtioblk.Range{NumSectors: limit + 8}))
		r.fails(virtioblk.StatusIOErr, kind, 0, ranges(virtioblk.Range{NumSectors: 1<<32 - 8}))
	}
	r.must(virtioblk.TypeDiscard, 0, ranges(
		virtioblk.Range{NumSectors: c.Discard.MaxSectors}, virtioblk.Range{Sector: limit, NumSectors: c.Discard.MaxSectors}))
}

func TestReadOnly(t *testing.T) {
	path := newFile(t, diskSize)
	r := newRig(t, setup{path: path, open: disk.Options{ReadOnly: true}})
	require.True(t, r.fn.Features().Has(virtioblk.ReadOnly))
	require.False(t, r.fn.Features().Has(virtioblk.Discard))
	require.False(t, r.fn.Features().Has(virtioblk.WriteZeroes))
	one := ranges(virtioblk.Range{NumSectors: 8})
	check := func() {
		r.fails(virtioblk.StatusIOErr, virtioblk.TypeOut, 0, pattern(sector, 1))
		for _, kind := range []virtioblk.RequestType{virtioblk.TypeDiscard, virtioblk.TypeWriteZeroes, virtioblk.TypeSecureErase} {
			r.fails(virtioblk.StatusIOErr, kind, 0, one)
		}
		r.must(virtioblk.TypeFlush, 0, nil)
		r.must(virtioblk.TypeIn, 0, make([]byte, 4096))
	}
	check()
	r.refuse = []virtio.Feature{virtioblk.ReadOnly} // a driver that does not care
	r.start()
	check()
	require.Equal(t, make([]byte, diskSize), r.onDisk(0, diskSize))
}

// What the disk says becomes a status, and nothing else happens.
func TestDiskErrors(t *testing.T) {
	engines(t, func(t *testing.T, o epfbackend.Options) {
		var faults *disktest.Faults
		r := newRig(t, setup{options: o, wrap: func(s disk.Store) disk.Store { faults = disktest.Wrap(s); return faults }})
		for _, kind := range []struct {
			t    virtioblk.RequestType
			op   disk.Op
			data []byte
		}{
			{virtioblk.TypeIn, disk.Read, make([]byte, 4096)},
			{virtioblk.TypeOut, disk.Write, make([]byte, 4096)},
			{virtioblk.TypeFlush, disk.Flush, nil},
			{virtioblk.TypeDiscard, disk.Discard, ranges(virtioblk.Range{NumSectors: 8}, virtioblk.Range{NumSectors: 8})},
			{virtioblk.TypeWriteZeroes, disk.WriteZeroes, ranges(virtioblk.Range{NumSectors: 8}, virtioblk.Range{NumSectors: 8})},
		} {
			for err, want := range map[error]virtioblk.Status{
				unix.EIO: virtioblk.StatusIOErr, unix.ENOSPC: virtioblk.StatusIOErr, unix.EROFS: virtioblk.StatusIOErr,
				unix.ENOMEM: virtioblk.StatusIOErr, unix.EOPNOTSUPP: virtioblk.StatusUnsupp,
			} {
				for skip := range min(2, max(1, len(kind.data)/virtioblk.RangeLen)) {
					if kind.op < disk.Discard && skip > 0 {
						continue
					}
					faults.Add(disktest.Rule{Ops: []disk.Op{kind.op}, Skip: skip, Count: 1, Err: err})
					before := faults.Caught()
					r.fails(want, kind.t, 0, kind.data)
					require.Equal(t, before+1, faults.Caught())
				}
			}
		}
	})
}
