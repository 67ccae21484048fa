package epc

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// recorder is a function that remembers the accesses to its BARs.
type recorder struct {
	desc Description
	log  []string
}

func (r *recorder) Describe() Description { return r.desc }

func (r *recorder) ReadBAR(bar int, off uint64, p []byte) {
	r.log = append(r.log, fmt.Sprintf("read %d %#x %d", bar, off, len(p)))
	for i := range p {
		p[i] = byte(0xa0 + i)
	}
}

func (r *recorder) WriteBAR(bar int, off uint64, p []byte) {
	r.log = append(r.log, fmt.Sprintf("write %d %#x %x", bar, off, p))
}
func (r *recorder) Attach(Controller)              {}
func (r *recorder) Pause(context.Context) error    { return nil }
func (r *recorder) Resume()                        {}
func (r *recorder) Reset(context.Context) error    { return nil }
func (r *recorder) HostGone(context.Context) error { return nil }
func (r *recorder) Detach() error                  { return nil }

func testFunction() *recorder {
	d := Description{
		Identity: Identity{
			Vendor: 0x1af4, Device: 0x1042, SubsystemVendor: 0x1234, SubsystemDevice: 0x5678,
			Revision: 1, Class: 0x018000, InterruptPin: 1,
		},
		MSIX: MSIX{Vectors: 3, TableBAR: 1, PBABAR: 2, PBAOffset: 0x80},
	}
	d.BARs[1].Size, d.BARs[2].Size, d.BARs[4].Size = 0x1000, 0x1000, 0x4000
	window := []byte{9, 0, 20, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	writable := make([]byte, len(window))
	for i := 4; i < 16; i++ {
		writable[i] = 0xff
	}
	d.Capabilities = []Capability{
		{Data: []byte{9, 0x55, 5, 1, 2}},
		{Data: window, Writable: writable, Window: func(b []byte) (int, uint64, int) {
			return int(b[4]), uint64(binary.LittleEndian.Uint32(b[8:])), int(binary.LittleEndian.Uint32(b[12:]))
		}},
	}
	return &recorder{desc: d}
}

func newSpace(t *testing.T) (*ConfigSpace, *recorder) {
	fn := testFunction()
	c, err := NewConfigSpace(fn)
	require.NoError(t, err)
	return c, fn
}

func read32(c *ConfigSpace, off int) uint32 {
	var b [4]byte
	c.Read(off, b[:])
	return binary.LittleEndian.Uint32(b[:])
}

func write32(c *ConfigSpace, off int, v uint32) {
	c.Write(off, binary.LittleEndian.AppendUint32(nil, v))
}

func TestConfigSpaceBytes(t *testing.T) {
	c, _ := newSpace(t)
	b := make([]byte, ConfigSpaceSize)
	c.Read(0, b)
	golden := strings.Join([]string{
		"f41a4210" + "00001000" + "01008001" + "00000000", // ids, status: capabilities, class
		"00000000" + "00000000" + "00000000" + "00000000", // BAR 0 to 3
		"00000000" + "00000000" + "00000000" + "34127856", // BAR 4, 5, subsystem
		"00000000" + "40000000" + "00000000" + "00010000", // first capability at 40, INTA
		"114c0200" + "01000000" + "82000000" + "09540501", // MSI-X: 3 vectors; then at 4c
		"02000000" + "09001405" + "00000000" + "00000000", // then at 54, the last
	}, "")
	require.Equal(t, golden, hex.EncodeToString(b[:0x60]))
	require.Equal(t, make([]byte, len(b)-0x68), b[0x68:], "nothing behind, no extended capabilities")
}

func TestBARsTellTheirSize(t *testing.T) {
	c, _ := newSpace(t)
	for i, want := range []uint32{0, 0xfffff000, 0xfffff000, 0, 0xffffc000, 0} {
		write32(c, 0x10+4*i, 0xffffffff)
		require.Equal(t, want, read32(c, 0x10+4*i), "BAR %d", i)
	}
	write32(c, 0x20, 0xfeb01234)
	require.Equal(t, uint32(0xfeb00000), read32(c, 0x20))
	c.Reset()
	require.Zero(t, read32(c, 0x20))
}

func TestOnlyWhatIsWritableIsWritten(t *testing.T) {
	c, _ := newSpace(t)
	before, after := make([]byte, 256), make([]byte, 256)
	c.Read(0, before)
	c.Write(0, []byte(strings.Repeat("\xff", 300)))
	c.Read(0, after)
	require.Equal(t, before[:4], after[:4], "ids")
	require.Equal(t, "4605", hex.EncodeToString(after[4:6]), "command")
	require.Equal(t, before[6:12], after[6:12], "status, revision, class")
	require.Equal(t, byte(0xff), after[0x3c], "interrupt line")
	require.Equal(t, byte(1), after[0x3d], "interrupt pin")
	require.Equal(t, before[0x2c:0x3c], after[0x2c:0x3c])
	require.Equal(t, "02c0", hex.EncodeToString(after[0x42:0x44]), "MSI-X control")
	require.Equal(t, before[0x44:0x56], after[0x44:0x56])

	c.Write(-1, []byte{1})
	c.Write(5000, []byte{1})
	c.Read(-4, after)
	require.Equal(t, make([]byte, 256), after)
}

func TestSwitchesOfTheHost(t *testing.T) {
	c, _ := newSpace(t)
	require.False(t, c.MSIXEnabled())
	require.False(t, c.BusMaster())
	write32(c, 0x40, 0x80000000)
	write32(c, 0x04, 0x6)
	require.True(t, c.MSIXEnabled())
	require.True(t, c.BusMaster())
	c.Reset()
	require.False(t, c.MSIXEnabled())
	require.False(t, c.BusMaster())
}

func TestWindowReachesTheBAR(t *testing.T) {
	c, fn := newSpace(t)
	choose := func(bar, off, n uint32) {
		fn.log = nil
		c.Write(0x58, []byte{byte(bar)})
		write32(c, 0x5c, off)
		write32(c, 0x60, n)
	}
	choose(4, 0x14, 1)
	b := make([]byte, 1)
	c.Read(0x64, b)
	c.Write(0x64, []byte{0x0f})
	require.Equal(t, []string{"read 4 0x14 1", "write 4 0x14 0f"}, fn.log)
	require.Equal(t, byte(0xa0), b[0])

	for _, bad := range [][3]uint32{
		{4, 0x4000, 4}, {4, 0x3ffe, 4}, {4, 2, 4}, {6, 0, 4}, {0, 0, 4}, {255, 0, 1}, {4, 0, 8}, {4, 0xfffffffc, 4}, {4, 0, 2},
	} {
		choose(bad[0], bad[1], bad[2])
		read32(c, 0x64)
		write32(c, 0x64, 1)
		require.Empty(t, fn.log, "%v", bad)
	}
}

func TestDescriptionsThatDoNotFit(t *testing.T) {
	for name, spoil := range map[string]func(d *Description){
		"bar":      func(d *Description) { d.BARs[3].Size = 24 },
		"wide":     func(d *Description) { d.BARs[4].Wide = true },
		"vectors":  func(d *Description) { d.MSIX.Vectors = 2049 },
		"long":     func(d *Description) { d.Capabilities[0].Data = make([]byte, 250) },
		"short":    func(d *Description) { d.Capabilities[0].Data = []byte{9} },
		"writable": func(d *Description) { d.Capabilities[0].Writable = []byte{1} },
		"window":   func(d *Description) { d.Capabilities[0].Window = d.Capabilities[1].Window },
	} {
		fn := testFunction()
		spoil(&fn.desc)
		_, err := NewConfigSpace(fn)
		require.ErrorIs(t, err, ErrDescription, name)
	}
}
