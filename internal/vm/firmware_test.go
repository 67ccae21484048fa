package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const bootText = "booted from disk"

// bootable makes a file of a boot image with the files.
func bootable(t *testing.T, files map[string][]byte) string {
	t.Helper()
	image, err := BootImage(bootText+"\r\n", files)
	require.NoError(t, err)
	name := filepath.Join(t.TempDir(), "boot.img")
	require.NoError(t, os.WriteFile(name, image, 0o600))
	return name
}

// eachFirmware runs the test once for each firmware that boots disks.
func eachFirmware(t *testing.T, test func(t *testing.T, machine Config)) {
	for _, m := range []struct {
		name     string
		kernel   Kernel
		firmware Firmware
	}{
		{"seabios", Kernel{}, DefaultFirmware},
		{"edk2-amd64", Kernel{}, EDK2},
		{"edk2-arm64", ARM64(), EDK2},
		{"u-boot-arm64", ARM64(), UBoot},
	} {
		t.Run(m.name, func(t *testing.T) {
			test(t, Config{Kernel: m.kernel, Firmware: m.firmware, Timeout: patient})
		})
	}
}

// reads returns how many read requests the disk has had.
func reads(ctx context.Context, t *testing.T, v *VM) int {
	t.Helper()
	answer, err := v.QMP(ctx, "query-blockstats", nil)
	require.NoError(t, err)
	var devices []struct {
		Stats struct {
			Reads int `json:"rd_operations"`
		} `json:"stats"`
	}
	require.NoError(t, json.Unmarshal(answer, &devices))
	n := 0
	for _, d := range devices {
		n += d.Stats.Reads
	}
	return n
}

func TestVMFirmwareBootsDisk(t *testing.T) {
	eachFirmware(t, func(t *testing.T, c Config) {
		image := bootable(t, nil)
		before, err := os.ReadFile(image)
		require.NoError(t, err)
		args, device := ownDisk("disk", image)
		c.BootDisk, c.Until = true, bootText
		c.Args, c.Devices = args, []string{device + ",bootindex=0"}
		res, err := Run(t.Context(), c)
		require.NoError(t, err)
		logTimes(t, res)
		after, err := os.ReadFile(image)
		require.NoError(t, err)
		if c.Firmware == UBoot {
			assert.True(t, bytes.Contains(after, []byte("UBOOTEFIVAR")), "the name of U-Boot's file")
		} else {
			assert.True(t, bytes.Equal(before, after), "booting writes nothing")
		}
	})
}

// TestVMFirmwareStartsKernel lets firmware load a stock kernel from the disk,
// tens of megabytes through its own driver, and start it.
func TestVMFirmwareStartsKernel(t *testing.T) {
	image, err := KernelImage(t.Context(), ARM64())
	require.NoError(t, err)
	kernel, err := os.ReadFile(image)
	require.NoError(t, err)
	disk := bootable(t, map[string][]byte{EFIBootARM64: kernel})
	for _, f := range []Firmware{EDK2, UBoot} {
		t.Run(string(f), func(t *testing.T) {
			args, device := ownDisk("disk", disk)
			res, err := Run(t.Context(), Config{
				Kernel: ARM64(), Firmware: f, BootDisk: true, Until: "Linux version ", Timeout: patient,
				Args: args, Devices: []string{device + ",bootindex=0"},
			})
			require.NoError(t, err)
			logTimes(t, res)
			assert.NotContains(t, res.Console, bootText)
		})
	}
}

// TestVMFirmwareThenKernel boots a kernel by way of firmware, twice, with a
// reset of the machine in between. SeaBIOS and U-Boot use the disk first.
func TestVMFirmwareThenKernel(t *testing.T) {
	note := []byte(strings.Repeat("a line of text\n", 10000))
	want := filepath.Join(t.TempDir(), "want")
	require.NoError(t, os.WriteFile(want, note, 0o600))
	eachFirmware(t, func(t *testing.T, c Config) {
		args, device := ownDisk("disk", bootable(t, map[string][]byte{
			"NOTES/LONG.TXT": note,
			"EMPTY":          nil,
			EFIBootARM64:     nil, // else U-Boot would not get to the kernel
		}))
		c.Reboot, c.Args, c.Devices = true, args, []string{device}
		c.Files = map[string]string{"want": want}
		c.Script = `
			set -e
			if [ -d /sys/firmware/efi ]; then echo by UEFI; fi
			fsck.vfat -n /dev/vda1
			mount -r /dev/vda1 /mnt
			cmp want /mnt/notes/long.txt
			[ ! -s /mnt/empty ]
			find /mnt -type f | sort
			umount /mnt
			say checked
			[ "$(hear)" = end ] || reboot -f
		`
		ctx := t.Context()
		v, err := Start(ctx, c)
		require.NoError(t, err)
		readByFirmware, checked, again := 0, error(nil), error(nil)
		if err := v.WaitConsole(ctx, "Linux version "); err == nil {
			readByFirmware = reads(ctx, t, v)
		}
		if checked = v.Expect(ctx, "checked"); checked == nil {
			require.NoError(t, v.Say(ctx, "reboot"))
			if again = v.Expect(ctx, "checked"); again == nil {
				require.NoError(t, v.Say(ctx, "end"))
			}
		}
		res, err := v.Wait()
		require.NoError(t, err)
		require.NoError(t, checked)
		require.NoError(t, again)
		logTimes(t, res)
		t.Logf("%d reads before Linux", readByFirmware)
		if c.Firmware != EDK2 {
			assert.Positive(t, readByFirmware)
		}
		assert.Equal(t, 2, res.Ups)
		assert.Equal(t, c.Firmware == EDK2, strings.Contains(res.Output, "by UEFI\n"))
		assert.Contains(t, res.Output, "/mnt/EFI/BOOT/BOOTX64.EFI\n")
		assert.NotContains(t, res.Output, "NvVars", "the firmware has flash of its own")
	})
}

// TestVMUBootCommands drives U-Boot by hand.
func TestVMUBootCommands(t *testing.T) {
	ctx := t.Context()
	args, device := ownDisk("disk", bootable(t, map[string][]byte{
		"NOTE.TXT": []byte("a note on the disk"),
	}))
	v, err := Start(ctx, Config{
		Kernel: ARM64(), Firmware: UBoot, Timeout: patient,
		BootDisk: true, Until: "read 12 bytes",
		Args: args, Devices: []string{device},
	})
	require.NoError(t, err)
	for _, step := range []struct{ wait, then string }{
		{"stop autoboot", " "},
		// All in one line: a command that prints takes what is typed meanwhile for
		// an attempt to stop it.
		{"=> ", "virtio scan; virtio info; fatls virtio 0:1; load virtio 0:1 ${loadaddr} note.txt " +
			"&& md.b ${loadaddr} ${filesize} && echo read ${filesize} bytes\n"},
	} {
		if v.WaitConsole(ctx, step.wait) != nil {
			break // the end of the run says more
		}
		require.NoError(t, v.Type(step.then))
	}
	res, err := v.Wait()
	require.NoError(t, err)
	logTimes(t, res)
	for _, want := range []string{"Device 0: 1af4 VirtIO Block Device", "NOTE.TXT", "a note on the di"} {
		assert.Contains(t, res.Console, want)
	}
}
