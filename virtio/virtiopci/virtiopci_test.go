package virtiopci

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The bytes are written down by hand from the structures in the specification.
func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		name string
		cap  Cap
		next uint8
		wire []byte
	}{
		{
			"common",
			Cap{Type: CommonCfg, BAR: 4, Offset: 0, Length: 0x1000},
			0x50,
			[]byte{9, 0x50, 16, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0},
		},
		{
			"notify",
			Cap{Type: NotifyCfg, BAR: 4, Offset: 0x3000, Length: 0x1000, NotifyMultiplier: 4},
			0x74,
			[]byte{9, 0x74, 20, 2, 4, 0, 0, 0, 0, 0x30, 0, 0, 0, 0x10, 0, 0, 4, 0, 0, 0},
		},
		{
			"isr",
			Cap{Type: ISRCfg, BAR: 4, Offset: 0x1000, Length: 1},
			0x84,
			[]byte{9, 0x84, 16, 3, 4, 0, 0, 0, 0, 0x10, 0, 0, 1, 0, 0, 0},
		},
		{
			"device",
			Cap{Type: DeviceCfg, BAR: 4, Offset: 0x2000, Length: 0x60},
			0x94,
			[]byte{9, 0x94, 16, 4, 4, 0, 0, 0, 0, 0x20, 0, 0, 0x60, 0, 0, 0},
		},
		{
			"window",
			Cap{Type: PCICfg},
			0,
			[]byte{9, 0, 20, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		},
		{
			"shared memory",
			Cap{Type: SharedMemCfg, BAR: 2, ID: 7, Offset: 0x100002000, Length: 0x300004000},
			0,
			[]byte{9, 0, 24, 8, 2, 7, 0, 0, 0, 0x20, 0, 0, 0, 0x40, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := make([]byte, len(c.wire)+1)
			for i := range b {
				b[i] = 0xa5
			}
			c.cap.Encode(b, c.next)
			require.Equal(t, c.wire, b[:len(c.wire)])
			require.Equal(t, byte(0xa5), b[len(c.wire)], "nothing behind it is touched")
			got, next, err := DecodeCap(b)
			require.NoError(t, err)
			require.Equal(t, c.cap, got)
			require.Equal(t, c.next, next)
		})
	}
}

func TestDecodeCapRefuses(t *testing.T) {
	notify := []byte{9, 0, 20, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0}
	for name, b := range map[string][]byte{
		"nothing":        nil,
		"short":          notify[:15],
		"cut notify":     notify[:19],
		"another vendor": append([]byte{0x11}, notify[1:]...),
		"length too low": append([]byte{9, 0, 16}, notify[3:]...),
	} {
		_, _, err := DecodeCap(b)
		require.ErrorIs(t, err, ErrCap, name)
	}
}

func TestRegistersFillTheStructure(t *testing.T) {
	off := 0
	for _, r := range Registers {
		require.Equal(t, off, r.Offset, r.Name)
		require.Zero(t, r.Offset%min(r.Width, 8), "%s is aligned", r.Name)
		off = r.End()
	}
	require.Equal(t, CommonCfgLen, off)
	require.Equal(t, 0x40, off)
}

// Offsets, widths and access as the structure in §4.1.4.3 gives them.
func TestRegisterGolden(t *testing.T) {
	for _, c := range []struct {
		name       string
		off, width int
		ro         bool
	}{
		{"device_feature_select", 0, 4, false},
		{"device_feature", 4, 4, true},
		{"driver_feature_select", 8, 4, false},
		{"driver_feature", 12, 4, false},
		{"config_msix_vector", 16, 2, false},
		{"num_queues", 18, 2, true},
		{"device_status", 20, 1, false},
		{"config_generation", 21, 1, true},
		{"queue_select", 22, 2, false},
		{"queue_size", 24, 2, false},
		{"queue_msix_vector", 26, 2, false},
		{"queue_enable", 28, 2, false},
		{"queue_notify_off", 30, 2, true},
		{"queue_desc", 32, 8, false},
		{"queue_driver", 40, 8, false},
		{"queue_device", 48, 8, false},
		{"queue_notif_config_data", 56, 2, true},
		{"queue_reset", 58, 2, false},
		{"admin_queue_index", 60, 2, true},
		{"admin_queue_num", 62, 2, true},
	} {
		r, ok := RegisterAt(c.off, c.width)
		require.True(t, ok, c.name)
		require.Equal(t, c.name, r.Name)
		require.Equal(t, c.ro, r.ReadOnly, c.name)
		require.Equal(t, c.off >= QueueSize && c.off < AdminQueueIndex, r.PerQueue, c.name)
	}
}

func TestRegisterAccess(t *testing.T) {
	for _, c := range []struct {
		off, n int
		name   string
		legal  bool
	}{
		{QueueDesc, 8, "queue_desc", true},
		{QueueDesc, 4, "queue_desc", true},
		{QueueDesc + 4, 4, "queue_desc", true},
		{QueueDesc + 4, 8, "queue_desc", false},
		{QueueDesc + 2, 4, "queue_desc", false},
		{QueueDesc, 2, "queue_desc", false},
		{DeviceStatus, 1, "device_status", true},
		{DeviceStatus, 2, "device_status", false},
		{DeviceFeature, 1, "device_feature", false},
		{DeviceFeature + 2, 2, "device_feature", false},
		{AdminQueueNum, 4, "admin_queue_num", false},
		{CommonCfgLen, 1, "", false},
		{-1, 1, "", false},
		{1 << 40, 4, "", false},
	} {
		r, ok := RegisterAt(c.off, c.n)
		require.Equal(t, c.legal, ok, "%d bytes at %#x", c.n, c.off)
		require.Equal(t, c.name, r.Name, "%d bytes at %#x", c.n, c.off)
	}
}

func TestMSIX(t *testing.T) {
	c := MSIXCap{Vectors: 5, TableBAR: 1, TableOffset: 0x800, PBABAR: 2, PBAOffset: 0x1000}
	b := make([]byte, MSIXCapLen)
	c.Encode(b, 0x60)
	require.Equal(t, []byte{0x11, 0x60, 4, 0, 1, 8, 0, 0, 2, 0x10, 0, 0}, b)
	require.Equal(t, c, DecodeMSIXCap(b))
	b[3] = 0xc0 // enabled and masked
	require.Equal(t, c, DecodeMSIXCap(b))

	c.Vectors = MSIXMaxVectors
	c.Encode(b, 0)
	require.Equal(t, []byte{0xff, 0x07}, b[2:4])
	require.Equal(t, c, DecodeMSIXCap(b))

	e := MSIXEntry{Addr: 0x1fee01000, Data: 0x4022, Masked: true}
	b = make([]byte, MSIXEntryLen)
	e.Encode(b)
	require.Equal(t, []byte{0, 0x10, 0xe0, 0xfe, 1, 0, 0, 0, 0x22, 0x40, 0, 0, 1, 0, 0, 0}, b)
	require.Equal(t, e, DecodeMSIXEntry(b))
	e.Masked = false
	e.Encode(b)
	require.Zero(t, b[12])
	require.Equal(t, e, DecodeMSIXEntry(b))

	require.Equal(t, 80, MSIXTableLen(5))
	require.Equal(t, 8, MSIXPBALen(1))
	require.Equal(t, 8, MSIXPBALen(64))
	require.Equal(t, 16, MSIXPBALen(65))
}
