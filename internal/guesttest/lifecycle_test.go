package guesttest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// TestVMRebind takes the device from its driver in the middle of I/O, and gives
// it back, twenty times in turn by virtio_blk and by virtio-pci; then the driver itself
// goes and comes.
func TestVMRebind(t *testing.T) {
	eachKernel(t, func(t *testing.T, k vm.Kernel) {
		disk := image(t, "disk.img", 64*mib)
		s := serve(t, checked, disk+",queues=2")
		g := boot(t, vm.Config{Kernel: k, Devices: s.devices()})
		g.trouble = true // requests that are cut off are I/O errors to the guest
		vda := suite.Image(g.sh, "vda", disk)
		kept := vda.Keep(t)
		vda.Rebind(t, kept, 0, 2)
		open := s.descriptors(t)
		vda.Rebind(t, kept, 2, 20)
		assert.Len(t, s.descriptors(t), len(open), "descriptors after 20 rounds; after 2 there were %v", open)
		vda.Reload(t, kept, 3)
		vda.Verified(t)
		g.powerOff(t)
		s.stop(t)
	})
}

// TestVMRestarts has one server outlive its guests: one that reboots itself, is
// reset from outside and is killed, each in the middle of I/O, and those after it.
func TestVMRestarts(t *testing.T) {
	parallel(t, 1)
	disk := image(t, "disk.img", 64*mib)
	fresh := serve(t, checked, image(t, "fresh.img", 64*mib)+",queues=2")
	s := serve(t, checked, disk+",queues=2")
	cfg := vm.Config{CPUs: 1, Devices: s.devices(), Reboot: true}

	g := boot(t, cfg)
	vda := suite.Image(g.sh, "vda", disk)
	kept := vda.Keep(t)
	vda.Load(t)
	g.tell(t, "reboot -f")
	g.up(t)
	assert.Equal(t, kept, vda.Kept(t), "after a reboot")
	for range 3 {
		vda.Load(t)
		_, err := g.QMP(t.Context(), "system_reset", nil)
		require.NoError(t, err)
		g.up(t)
		assert.Equal(t, kept, vda.Kept(t), "after a reset")
	}
	g.quiet(t)
	for range 3 {
		vda.Load(t)
		g.Kill()
		_, err := g.Wait()
		require.Error(t, err, "a guest that is killed has not ended well")
		s.alive(t)
		g = boot(t, cfg)
		vda = suite.Image(g.sh, "vda", disk)
		assert.Equal(t, kept, vda.Kept(t), "after a guest that was killed")
	}
	g.powerOff(t)

	assert.True(t, settles(stopTime, func() bool { return len(s.descriptors(t)) <= s.idle }),
		"before the first guest, %d descriptors; after the last: %v", s.idle, s.descriptors(t))
	assert.Empty(t, s.complaints())
	want := fresh.goroutines(t)
	require.NotEmpty(t, want)
	assert.Equal(t, want, s.goroutines(t), "goroutines, compared with a server that never had a guest")
}

// TestVMStop stops the server in the middle of I/O. What was flushed is on the
// disk, and the guest's machine goes on without it.
func TestVMStop(t *testing.T) {
	parallel(t, 1)
	disk := image(t, "disk.img", 64*mib)
	s := serve(t, checked, disk+",queues=2")
	g := boot(t, vm.Config{Devices: s.devices()})
	suite.Image(g.sh, "vda", disk).Load(t)
	// Each block says which one it is, and is announced when its flush is done.
	g.tell(t, `
		i=0
		while printf 'block %08d\n' $i | dd of=/dev/vda bs=4k seek=$i conv=sync,fsync oflag=direct status=none; do
			say $i
			i=$((i + 1))
		done
	`)
	last := -1
	hear := func(limit time.Duration) bool {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		word, err := g.Hear(ctx)
		if err != nil {
			return false
		}
		n, err := strconv.Atoi(word)
		require.NoError(t, err)
		require.Equal(t, last+1, n)
		last = n
		return true
	}
	for last < 50 {
		require.True(t, hear(guestTime))
	}
	s.signal(t, unix.SIGTERM)
	s.wait(t)
	for hear(2 * time.Second) {
	}
	t.Logf("%d blocks were flushed", last+1)
	for i := range last + 1 {
		want := fmt.Sprintf("block %08d\n", i)
		require.Equal(t, want, string(content(t, disk, int64(i)*4096, int64(len(want)))))
	}

	status, err := g.QMP(t.Context(), "query-status", nil)
	require.NoError(t, err, "QEMU is alive")
	assert.Contains(t, string(status), `"running": true`)
	select {
	case <-g.Done():
		res, err := g.Wait()
		require.Fail(t, "the guest's machine ended", "%v\n%s", err, res.QEMU)
	default:
	}
	g.Kill()
	res, _ := g.Wait()
	assert.NotContains(t, strings.ToLower(res.QEMU), "assert")
}
