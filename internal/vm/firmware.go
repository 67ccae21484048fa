package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// Firmware names what a machine starts before its kernel.
type Firmware string

const (
	// DefaultFirmware is what QEMU starts by itself: SeaBIOS on 64-bit x86, and
	// nothing on 64-bit Arm, which then boots kernels only.
	DefaultFirmware Firmware = ""
	// EDK2 is the UEFI firmware of both machines, also known as OVMF and AAVMF.
	// With Script or Test, it is handed the kernel, and starts it without a look
	// at the disks.
	EDK2 Firmware = "edk2"
	// UBoot is U-Boot for 64-bit Arm. It boots by itself unless something is
	// typed within two seconds, see [VM.Type]. With Script or Test, it looks at
	// the disks first, and starts the kernel when none of them can be booted. It
	// keeps its UEFI variables in a file on the disk's EFI system partition.
	UBoot Firmware = "u-boot"
)

// firmwareFile is an image in one of Debian's packages.
type firmwareFile struct{ pkg, path string }

// arguments puts the image at that name into the machine. edk2 on x86 has to be
// in flash: without any, it keeps its variables in a file on the first disk that
// has a FAT file system. What it writes goes to a temporary file.
func (f Firmware) arguments(arch, image string) []string {
	if f == EDK2 && arch == "amd64" {
		return []string{"-drive", "if=pflash,unit=0,format=raw,snapshot=on,file=" + image}
	}
	return []string{"-bios", image}
}

// firmwares has the images by firmware and architecture.
var firmwares = map[Firmware]map[string]firmwareFile{
	EDK2: {
		"amd64": {"ovmf", "usr/share/ovmf/OVMF.fd"},
		"arm64": {"qemu-efi-aarch64", "usr/share/qemu-efi-aarch64/QEMU_EFI.fd"},
	},
	UBoot: {
		"arm64": {"u-boot-qemu", "usr/lib/u-boot/qemu_arm64/u-boot.bin"},
	},
}

// fetchFirmware returns the image's name in the cache, which is empty for the
// default firmware.
func fetchFirmware(ctx context.Context, f Firmware, arch string) (string, error) {
	if f == DefaultFirmware {
		return "", nil
	}
	file, ok := firmwares[f][arch]
	if !ok {
		return "", fmt.Errorf("vm: no firmware %q for %s", f, arch)
	}
	root, err := ensure(ctx, firmwareRecipe(f, arch, file))
	if err != nil {
		return "", err
	}
	return filepath.Join(root, filepath.Base(file.path)), nil
}

// firmwareRecipe takes the one file out of its package, which is large and the
// same for every architecture of this machine.
func firmwareRecipe(f Firmware, arch string, file firmwareFile) recipe {
	return recipe{
		name: string(f) + "-" + arch,
		key:  []string{toolsRelease, file.pkg, file.path},
		make: func(ctx context.Context, b *builder, dir string) error {
			host, err := archOf(runtime.GOARCH)
			if err != nil {
				return err
			}
			apt, err := b.archive(ctx, host, toolsRelease)
			if err != nil {
				return err
			}
			unpacked := filepath.Join(b.work, "unpacked")
			if err := apt.exactly(ctx, unpacked, "", file.pkg); err != nil {
				return err
			}
			return os.Rename(filepath.Join(unpacked, file.path), filepath.Join(dir, filepath.Base(file.path)))
		},
	}
}
