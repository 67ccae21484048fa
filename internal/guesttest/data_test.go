package guesttest

import (
	"testing"

	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// TestVMData shows that what a guest writes is what it reads, and what the disk
// holds outside: with a file system, with verified random I/O on several queues,
// with discard and zeroing, and with flushes.
func TestVMData(t *testing.T) {
	eachKernel(t, func(t *testing.T, k vm.Kernel) {
		files, raw := image(t, "files.img", 256*mib), image(t, "raw.img", 128*mib)
		back := blktest.Loop(t, image(t, "back.img", 16*mib), blktest.LoopOptions{})
		through := blktest.Loop(t, image(t, "through.img", 16*mib), blktest.LoopOptions{})
		s := serve(t, checked, files, raw+",queues=4", back, through+",cache=writethrough")
		g := boot(t, vm.Config{Kernel: k, CPUs: 4, Devices: s.devices()})

		vda, vdb := suite.Image(g.sh, "vda", files), suite.Image(g.sh, "vdb", raw)
		var sums suite.Files
		t.Run("file system", func(t *testing.T) { sums = vda.Fill(t) })
		t.Run("random", func(t *testing.T) { vdb.Random(t, 4, 16) })
		t.Run("discard", func(t *testing.T) { vdb.Discards(t, 16) })
		t.Run("flush", func(t *testing.T) { suite.Image(g.sh, "vdc", back).Flushing(t) })
		t.Run("write-through", func(t *testing.T) { suite.Image(g.sh, "vdd", through).WriteThrough(t) })
		vdb.Agrees(t)
		g.powerOff(t)
		s.stop(t)
		t.Run("file system outside", func(t *testing.T) { sums.Check(t, vda) })
	})
}
