package guesttest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// TestVMFailingDisk serves two disks that fail: one that cannot be read in its
// second half (a loop device has lost that part of its file), and one that has no
// room (a sparse file on a file system that is full). The guest gets I/O errors
// where there are any, and nothing else happens.
func TestVMFailingDisk(t *testing.T) {
	parallel(t, 1)
	torn := image(t, "torn.img", 64*mib)
	device := blktest.Loop(t, torn, blktest.LoopOptions{})
	small := blktest.Mount(t, "none", "tmpfs", "size=16M")
	full := filepath.Join(small, "full.img")
	require.NoError(t, os.WriteFile(full, nil, 0o600))
	require.NoError(t, os.Truncate(full, 64*mib))

	s := serve(t, checked, device+",queues=2", full)
	s.trouble = true
	g := boot(t, vm.Config{Devices: s.devices()})
	g.trouble = true
	g.sh(t, "fill vda 64 0; fill vdb 8 0")
	assert.Empty(t, g.complaints(t))
	require.NoError(t, unix.Truncate(torn, 32*mib))
	out := g.sh(t, `
		fio --name=good --filename=/dev/vda --direct=1 --rw=randrw --bsrange=4k-64k --size=24m --time_based --runtime=8 \
			--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 >/tmp/good 2>&1 &
		good=$!
		for at in 33 40 63 62 50; do
			if dd if=/dev/vda of=/dev/null bs=64k count=1 skip=$((at * 16)) iflag=direct; then
				echo "read at $at MiB"; exit 1
			fi
		done
		if dd if=/dev/vda of=/dev/null bs=1M iflag=direct; then echo read all; exit 1; fi
		wait $good || { cat /tmp/good; exit 1; }

		if fill vdb 40 8; then echo "wrote all"; exit 1; fi
		if dd if=/dev/zero of=/dev/vdb bs=1M seek=30 count=20 conv=fsync; then echo "wrote all, cached"; exit 1; fi
		dd if=/dev/vdb bs=1M count=8 iflag=direct status=none | tr -cd '\252' | wc -c | grep -qx $((8 << 20))
		blkdiscard -f /dev/vdb
		fio --name=again --filename=/dev/vdb --direct=1 --rw=randrw --bsrange=4k-64k --size=8m \
			--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 >/tmp/again 2>&1 || { cat /tmp/again; exit 1; }
	`)
	assert.Contains(t, out, "Input/output error")
	complaints := g.complaints(t)
	for _, disk := range []string{"vda", "vdb"} {
		assert.Contains(t, strings.Join(complaints, "\n"), "I/O error, dev "+disk)
	}
	for _, line := range complaints {
		assert.Regexp(t, `I/O error|[Bb]uffer`, line, "I/O errors, and nothing else")
	}
	g.powerOff(t)
	s.stop(t)
}
