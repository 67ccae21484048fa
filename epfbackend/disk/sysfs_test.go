package disk

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"golang.org/x/sys/unix"
)

// tree writes files into a directory that plays sysfs.
func tree(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
}

func TestSerials(t *testing.T) {
	for _, c := range []struct {
		name, disk string
		files      map[string]string
		want       string
	}{
		{"virtio", "vda", map[string]string{"serial": "S123\n"}, "S123"},
		{"nvme", "nvme0n1", map[string]string{"device/serial": "  S4EV NX0R  \n", "wwid": "eui.1"}, "S4EVNX0R"},
		{"mmc", "mmcblk0", map[string]string{"device/serial": "0x1a2b3c4d\n"}, "0x1a2b3c4d"},
		{"scsi page", "sda", map[string]string{"device/vpd_pg80": "\x00\x80\x00\x06 SCSI1tail", "device/wwid": "naa.5"}, "SCSI1"},
		{"short page", "sda", map[string]string{"device/vpd_pg80": "\x00\x80\xff\xffAB"}, "AB"},
		{"broken page", "sda", map[string]string{"device/vpd_pg80": "\x00\x80", "device/wwid": "naa.5"}, "naa.5"},
		{"long", "nvme0n1", map[string]string{"wwid": "nvme.144d-0123456789abcdefghij\n"}, "0123456789abcdefghij"},
		{"not ASCII", "sda", map[string]string{"serial": "A\x01é\x7fB"}, "AB"},
		{"nothing", "loop7", nil, "loop7"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "block", c.disk)
			require.NoError(t, os.MkdirAll(dir, 0o755))
			tree(t, dir, c.files)
			require.Equal(t, c.want, deviceSerial(dir))
			tree(t, dir, map[string]string{"p12/partition": "12\n"})
			part := deviceSerial(filepath.Join(dir, "p12"))
			require.LessOrEqual(t, len(part), 20)
			require.Contains(t, part, "-p12")
		})
	}
}

func TestLifetime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mmcblk0")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.Nil(t, lifetime(dir))
	tree(t, dir, map[string]string{"device/life_time": "0x01 0x0b\n"})
	require.Nil(t, lifetime(dir))
	tree(t, dir, map[string]string{"device/pre_eol_info": "0x02\n"})
	require.Equal(t, &Lifetime{PreEOL: 2, TypeA: 1, TypeB: 11}, lifetime(dir))
	tree(t, dir, map[string]string{"device/life_time": "rubbish"})
	require.Nil(t, lifetime(dir))
}

// A real loop device, of which sysfs tells something else.
func TestLimitsComeFromSysfs(t *testing.T) {
	loop := blktest.Loop(t, blktest.File(t, mib), blktest.LoopOptions{})
	var st unix.Stat_t
	require.NoError(t, unix.Stat(loop, &st))
	open := func(files map[string]string) (Store, error) {
		sys := t.TempDir()
		dir := filepath.Join(sys, "devices/mmcblk9")
		require.NoError(t, os.MkdirAll(dir, 0o755))
		tree(t, dir, files)
		require.NoError(t, os.MkdirAll(filepath.Join(sys, "dev/block"), 0o755))
		require.NoError(t, os.Symlink(dir, filepath.Join(sys, "dev/block", devNumber(st.Rdev))))
		return Open(loop, Options{roots: roots{sys: sys}})
	}
	s, err := open(nil)
	require.NoError(t, err)
	i := s.Info()
	require.NoError(t, s.Close())
	require.False(t, i.Discard.Supported)
	require.True(t, i.WriteZeroes.Supported)
	require.False(t, i.ZeroUnmaps)
	require.Equal(t, "mmcblk9", i.Serial)

	s, err = open(map[string]string{
		"queue/discard_granularity": "65536\n", "queue/discard_max_bytes": "1048576\n",
		"queue/write_zeroes_max_bytes": "4096", "discard_alignment": "512\n", "device/serial": "0x99",
		"device/life_time": "0x03 0x00", "device/pre_eol_info": "0x01",
	})
	require.NoError(t, err)
	i = s.Info()
	require.NoError(t, s.Close())
	require.Equal(t, RangeLimits{Supported: true, Granularity: 65536, Alignment: 512, MaxBytes: quickRange}, i.Discard)
	require.True(t, i.ZeroUnmaps)
	require.Equal(t, "0x99", i.Serial)
	require.Equal(t, &Lifetime{PreEOL: 1, TypeA: 3}, i.Lifetime)

	_, err = open(map[string]string{"queue/zoned": "host-managed\n"})
	require.ErrorIs(t, err, ErrUnsupported)
	require.ErrorContains(t, err, "zoned")

	sys := t.TempDir()
	dir := filepath.Join(sys, "devices/sdx")
	tree(t, dir, map[string]string{"holders/dm-3/x": "", "holders/md0/x": ""})
	tree(t, sys, map[string]string{"class/block/dm-3/dm/name": "vg-root\n"})
	require.NoError(t, os.MkdirAll(filepath.Join(sys, "dev/block"), 0o755))
	require.NoError(t, os.Symlink(dir, filepath.Join(sys, "dev/block", devNumber(st.Rdev))))
	_, err = Open(loop, Options{roots: roots{sys: sys}})
	require.ErrorIs(t, err, ErrBusy)
	require.ErrorContains(t, err, "held by dm-3 (vg-root), held by md0")
}
