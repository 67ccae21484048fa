package vfiouser

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGoldenWire(t *testing.T) {
	areas := []Area{{0x1000, 0x2000}, {0x8000, 0x1000}}
	for _, tc := range []struct {
		name string
		got  []byte
		want string
	}{
		{
			"header", encoded(HeaderSize, Header{0x1234, CmdSetIRQs, 0x24, FlagReply | FlagError, 22}.Put),
			"3412 0800 24000000 21000000 16000000",
		},
		{
			"DMA_MAP", encoded(dmaMapSize, DMAMap{3, 0x1000, 0x1_0000_0000, 0x4000_0000}.put),
			"20000000 03000000 0010000000000000 0000000001000000 0000004000000000",
		},
		{
			"DMA_UNMAP", encoded(dmaUnmapSize, DMAUnmap{2, 0xabc000, 0x1000}.put),
			"18000000 02000000 00c0ab0000000000 0010000000000000",
		},
		{
			"GET_INFO", encoded(deviceInfoSize, DeviceInfo{3, 9, 5}.put),
			"10000000 03000000 09000000 05000000",
		},
		{
			"GET_REGION_INFO", encoded(regionInfoSize, RegionInfo{80, 15, 4, 32, 0x4000, 0x100000}.put),
			"50000000 0f000000 04000000 20000000 0040000000000000 0000100000000000",
		},
		{
			"sparse mmap", encoded(sparseSize(2), func(b []byte) { putSparse(b, areas) }),
			"0100 0100 00000000 02000000 00000000 0010000000000000 0020000000000000 0080000000000000 0010000000000000",
		},
		{
			"GET_IRQ_INFO", encoded(irqInfoSize, IRQInfo{1, 2, 5}.put),
			"10000000 01000000 02000000 05000000",
		},
		{
			"SET_IRQS", encoded(irqSetSize+2, IRQSet{Flags: 0x22, Index: 2, Start: 1, Count: 2, Bools: []byte{1, 0}}.put),
			"16000000 22000000 02000000 01000000 02000000 0100",
		},
		{
			"region access", encoded(regionAccessSize, RegionAccess{0x3000, 4, 2}.put),
			"0030000000000000 04000000 02000000",
		},
		{
			"DMA access, specification", encoded(16, func(b []byte) { DMALayoutSpec.put(b, 0xfee0, 4) }),
			"e0fe000000000000 0400000000000000",
		},
		{
			"DMA access, 32-bit count", encoded(16, func(b []byte) { DMALayout32.put(b, 0xfee0, 4) }),
			"e0fe000000000000 04000000 00000000",
		},
	} {
		require.Equal(t, strings.ReplaceAll(tc.want, " ", ""), hex.EncodeToString(tc.got), tc.name)
	}
	require.Equal(t, Header{0x1234, CmdSetIRQs, 0x24, 0x21, 22}, ParseHeader(encoded(16, Header{0x1234, CmdSetIRQs, 0x24, 0x21, 22}.Put)))
	require.Equal(t, 12, DMALayout32.dataOffset())
	require.Equal(t, 16, DMALayoutSpec.dataOffset())
}

func TestHeaderIsChecked(t *testing.T) {
	for name, h := range map[string]Header{
		"shorter than itself": {Size: 15},
		"no size":             {Size: 0},
		"huge":                {Size: MaxMessage + 1},
		"unknown type":        {Size: 16, Flags: 2},
	} {
		require.ErrorIs(t, h.check(), ErrMalformed, name)
	}
	require.NoError(t, Header{Size: MaxMessage}.check())
}

func TestSparseCapabilityIsFoundAndChecked(t *testing.T) {
	areas := []Area{{0, 4096}, {8192, 4096}}
	info := RegionInfo{Flags: RegionCaps, CapOffset: 48}
	b := make([]byte, 48+sparseSize(2))
	putSparse(b[48:], areas)
	got, err := parseSparse(b, info)
	require.NoError(t, err)
	require.Equal(t, areas, got)

	// Behind a capability that we do not know.
	info.CapOffset = 32
	le.PutUint16(b[32:], 7)
	le.PutUint32(b[36:], 48)
	got, err = parseSparse(b, info)
	require.NoError(t, err)
	require.Equal(t, areas, got)

	le.PutUint32(b[36:], 32)
	_, err = parseSparse(b, info)
	require.ErrorIs(t, err, ErrMalformed, "a loop")
	le.PutUint32(b[36:], 48)
	le.PutUint32(b[48+8:], 3)
	_, err = parseSparse(b, info)
	require.ErrorIs(t, err, ErrMalformed, "more areas than bytes")
	info.CapOffset = 4
	_, err = parseSparse(b, info)
	require.ErrorIs(t, err, ErrMalformed, "inside the fixed part")
}

// FuzzDecode: decoders take any bytes, and what they accept survives being
// encoded again.
func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	f.Add(encoded(dmaMapSize, DMAMap{3, 0x1000, 0x1000, 0x1000}.put))
	f.Add(encoded(dmaUnmapSize, DMAUnmap{2, 0, 0}.put))
	f.Add(encoded(irqSetSize+2, IRQSet{Flags: 0x22, Index: 2, Count: 2, Bools: []byte{1, 1}}.put))
	f.Add(encoded(regionAccessSize+4, RegionAccess{0x10, 4, 4}.put))
	f.Add(encoded(regionInfoSize+sparseSize(1), func(b []byte) {
		RegionInfo{Argsz: 64, Flags: 15, CapOffset: 32, Size: 4096}.put(b)
		putSparse(b[32:], []Area{{0, 4096}})
	}))
	f.Add(append([]byte{0, 0, 0, 0}, ourCapabilities+"\x00"...))
	f.Add(encoded(writeMultiSize+2*writeOneSize, func(b []byte) {
		b[0] = 2
		RegionAccess{4, 0, 8}.put(b[8:])
		RegionAccess{8, 0, 2}.put(b[32:])
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(n int, put func([]byte)) {
			again := append([]byte(nil), b...)
			put(again[:n])
			copy(again[:4], b[:4]) // argsz is not kept
			require.Equal(t, b, again)
		}
		if m, err := parseDMAMap(b); err == nil {
			same(dmaMapSize, m.put)
		}
		if m, err := parseDMAUnmap(b); err == nil {
			same(dmaUnmapSize, m.put)
		}
		if m, err := parseDeviceInfo(b); err == nil {
			same(deviceInfoSize, m.put)
		}
		if m, err := parseIRQInfo(b); err == nil {
			same(irqInfoSize, m.put)
		}
		if m, err := parseIRQSet(b, nil); err == nil {
			same(m.size(), m.put)
			require.True(t, m.Bools == nil || len(m.Bools) == int(m.Count))
		}
		if m, err := parseRegionInfo(b); err == nil {
			same(regionInfoSize, m.put)
			areas, err := parseSparse(b, m)
			require.True(t, err != nil || len(areas)*sparseAreaSize <= len(b))
		}
		if m, data, err := parseRegionWrite(b); err == nil {
			require.Len(t, data, int(m.Count))
			require.True(t, bytes.Equal(data, b[16:16+len(data)]))
		}
		if n, err := parseWriteMulti(b); err == nil {
			for i := range n {
				if m, data, err := writeOne(b, i); err == nil {
					require.Len(t, data, int(m.Count))
					require.LessOrEqual(t, len(data), 8)
				}
			}
		}
		for _, l := range []DMALayout{DMALayoutSpec, DMALayout32} {
			if _, n, err := l.parse(b); err == nil {
				if data, err := l.data(b, int(n)); err == nil {
					require.Len(t, data, int(n))
				}
			}
		}
		if caps, err := parseVersion(b); err == nil {
			require.GreaterOrEqual(t, caps.MaxTransfer, minTransfer)
		}
		if len(b) >= HeaderSize {
			h := ParseHeader(b)
			again := make([]byte, HeaderSize)
			h.Put(again)
			require.Equal(t, b[:HeaderSize], again)
		}
	})
}
