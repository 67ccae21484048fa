package vm

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// patient is a time-out for machines that other work slows down.
const patient = 6 * time.Minute

// TestVMArm64 shows that an arm64 guest has what the others have: the
// conversation with the host, the programs, a disk, and interrupts by way of
// the ITS.
func TestVMArm64(t *testing.T) {
	args, device := ownDisk("disk", blank(t, 64<<20))
	ctx := t.Context()
	v, err := Start(ctx, Config{
		Kernel: ARM64(), Args: args, Devices: []string{device}, Timeout: patient,
		Script: `
			set -e
			say ready
			expect "go on"
			uname -rm
			grep virtio /proc/interrupts
			udev
			lsblk -b -d -n -o NAME,SERIAL,SIZE,RO
			mkfs.ext4 -q /dev/vda
			e2fsck -f -n /dev/vda
			fio --name=v --filename=/dev/vda --rw=randrw --bsrange=4k-64k --size=4m \
				--ioengine=io_uring --iodepth=8 --direct=1 --verify=crc32c --randseed=1
			lspci -n -d 1af4:
		`,
	})
	require.NoError(t, err)
	require.NoError(t, v.Expect(ctx, "ready"))
	require.NoError(t, v.Say(ctx, "go on"))
	res, err := v.Wait()
	require.NoError(t, err)
	logTimes(t, res)
	assert.Contains(t, res.Kernel, "arm64")
	assert.Contains(t, res.Output, res.Kernel+" aarch64\n")
	assert.Contains(t, res.Console, "Linux version "+res.Kernel)
	assert.Regexp(t, `ITS-PCI-MSIX-\S+ +1 Edge +virtio\d-req`, res.Output)
	assert.Regexp(t, `vda +disk +67108864 +0\n`, res.Output)
	assert.Contains(t, res.Output, "1af4:1042")
}

func TestVMArm64TestBinary(t *testing.T) {
	res, err := Run(t.Context(), Config{
		Kernel: ARM64(), Timeout: patient,
		Test: TestBinary(t, ARM64(), "./testdata/inguest"), TestArgs: []string{"-test.run", "Passes"},
	})
	require.NoError(t, err)
	logTimes(t, res)
	assert.Contains(t, res.Output, "on "+res.Kernel)
}

func TestVMArm64Crash(t *testing.T) {
	res, err := Run(t.Context(), Config{
		Kernel: ARM64(), Timeout: patient, Script: "echo c >/proc/sysrq-trigger; sleep 1000",
	})
	require.ErrorContains(t, err, "the kernel crashed")
	assert.Less(t, res.Total, patient, "a crash ends the run at once")
}
