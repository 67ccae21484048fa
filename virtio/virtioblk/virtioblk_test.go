package virtioblk

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/virtio"
)

func TestFeatures(t *testing.T) {
	var all virtio.Features
	for f := range FeatureNames {
		all = all.With(f)
	}
	require.Equal(t, uint32(0x0003fe76), all.Dword(0))
	require.Equal(t, "{SIZE_MAX SEG_MAX GEOMETRY RO BLK_SIZE FLUSH TOPOLOGY CONFIG_WCE MQ DISCARD WRITE_ZEROES "+
		"LIFETIME SECURE_ERASE ZONED}", all.Describe(FeatureNames))
}

// The bytes are written down by hand from struct virtio_blk_config: each field
// holds bytes that tell where it must stand.
func TestConfig(t *testing.T) {
	c := Config{
		Capacity:    0x0807060504030201,
		SizeMax:     0x0c0b0a09,
		SegMax:      0x100f0e0d,
		Geometry:    Geometry{Cylinders: 0x1211, Heads: 0x13, Sectors: 0x14},
		BlkSize:     0x18171615,
		Topology:    Topology{PhysicalBlockExp: 0x19, AlignmentOffset: 0x1a, MinIOSize: 0x1c1b, OptIOSize: 0x201f1e1d},
		Writeback:   true,
		NumQueues:   0x2423,
		Discard:     Limits{MaxSectors: 0x28272625, MaxSeg: 0x2c2b2a29, Alignment: 0x302f2e2d},
		WriteZeroes: Limits{MaxSectors: 0x34333231, MaxSeg: 0x38373635},
		MayUnmap:    true,
		SecureErase: Limits{MaxSectors: 0x403f3e3d, MaxSeg: 0x44434241, Alignment: 0x48474645},
		Zoned: Zoned{
			ZoneSectors: 0x4c4b4a49, MaxOpenZones: 0x504f4e4d, MaxActiveZones: 0x54535251,
			MaxAppendSectors: 0x58575655, WriteGranularity: 0x5c5b5a59, Model: 0x5d,
		},
	}
	want := make([]byte, 96)
	for i := range want {
		want[i] = byte(i + 1)
	}
	want[0x20], want[0x21] = 1, 0                               // writeback, unused0
	want[0x38], want[0x39], want[0x3a], want[0x3b] = 1, 0, 0, 0 // write_zeroes_may_unmap, unused1
	want[0x5d], want[0x5e], want[0x5f] = 0, 0, 0                // unused2
	b := make([]byte, 97)
	for i := range b {
		b[i] = 0xee
	}
	c.Encode(b)
	require.Equal(t, want, b[:96])
	require.Equal(t, byte(0xee), b[96], "nothing behind it is touched")

	var got Config
	got.Decode(b)
	require.Equal(t, c, got)

	(&Config{}).Encode(b)
	require.Equal(t, make([]byte, 96), b[:96])
	require.Equal(t, 0x20, CfgWriteback)
}

func TestRequestStructures(t *testing.T) {
	b := make([]byte, HeaderLen)
	h := Header{Type: TypeOut, IOPrio: 0x04030201, Sector: 0x1122334455667788}
	h.Encode(b)
	require.Equal(t, []byte{1, 0, 0, 0, 1, 2, 3, 4, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11}, b)
	require.Equal(t, h, DecodeHeader(b))

	r := Range{Sector: 0x1122334455667788, NumSectors: 0x04030201, Flags: RangeUnmap}
	r.Encode(b)
	require.Equal(t, []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 1, 2, 3, 4, 1, 0, 0, 0}, b)
	require.Equal(t, r, DecodeRange(b))

	b = make([]byte, LifetimeLen)
	l := Lifetime{PreEOL: 0x0201, TypeA: 0x0403, TypeB: 0x0605}
	l.Encode(b)
	require.Equal(t, []byte{1, 2, 3, 4, 5, 6}, b)
	require.Equal(t, l, DecodeLifetime(b))
}

func TestRequestNumbers(t *testing.T) {
	for n, name := range map[RequestType]string{
		0: "IN", 1: "OUT", 4: "FLUSH", 8: "GET_ID", 10: "GET_LIFETIME", 11: "DISCARD", 13: "WRITE_ZEROES",
		14: "SECURE_ERASE", 15: "ZONE_APPEND", 16: "ZONE_REPORT", 18: "ZONE_OPEN", 20: "ZONE_CLOSE",
		22: "ZONE_FINISH", 24: "ZONE_RESET", 26: "ZONE_RESET_ALL", 12: "type 12",
	} {
		require.Equal(t, name, n.String())
	}
	for n, name := range map[Status]string{
		0: "OK", 1: "IOERR", 2: "UNSUPP", 3: "ZONE_INVALID_CMD", 4: "ZONE_UNALIGNED_WP",
		5: "ZONE_OPEN_RESOURCE", 6: "ZONE_ACTIVE_RESOURCE", 7: "status 7",
	} {
		require.Equal(t, name, n.String())
	}
}
