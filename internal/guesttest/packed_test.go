package guesttest

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// TestVMPacked shows packed virtqueues with stock drivers, where they are all that
// is offered and where the driver may choose.
func TestVMPacked(t *testing.T) {
	parallel(t, 1)
	packed, both := image(t, "packed.img", 128*mib), image(t, "both.img", 64*mib)
	s := serve(t, checked, both+",ring=both", packed+",ring=packed,queues=4")
	s.trouble = true // the firmware knows split rings only, and is refused by the second disk
	g := boot(t, vm.Config{CPUs: 4, Devices: s.devices()})
	vda, vdb := suite.Image(g.sh, "vda", both), suite.Image(g.sh, "vdb", packed)
	vda.Shows(t, suite.Values{"features": with(suite.Discard, suite.WriteZeroes, suite.RingPacked)})
	vdb.Shows(t, suite.Values{"features": with(suite.MQ, suite.Discard, suite.WriteZeroes, suite.RingPacked)})
	t.Run("random", func(t *testing.T) { vdb.Random(t, 4, 16) })
	t.Run("discard", func(t *testing.T) { vdb.Discards(t, 16) })
	g.sh(t, "mkfs.ext4 -q /dev/vda; mount /dev/vda /mnt; cp -r /usr/sbin /mnt; umount /mnt; e2fsck -fn /dev/vda")
	g.powerOff(t)
	s.stop(t)
	assert.Contains(t, s.log.String(), "RING_PACKED: not accepted, but the device was told to insist")
	run(t, "e2fsck", "-fn", both)
}
