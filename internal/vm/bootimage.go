package vm

import (
	"encoding/binary"
	"maps"
)

// The names under which UEFI looks for a program on a disk that it has not
// been told about (UEFI 2.11 §3.5.1.1).
const (
	EFIBootAMD64 = "EFI/BOOT/BOOTX64.EFI"
	EFIBootARM64 = "EFI/BOOT/BOOTAA64.EFI"
)

// partitionStart is where the boot image's partition begins, in sectors.
const partitionStart = 2048

// BootImage returns a disk image of 512-byte sectors that every [Firmware] can
// boot. Whichever does, the text appears on the console, from a program that
// the firmware has read from the disk, and the machine halts. The text is ASCII
// of at most 400 bytes; "\r\n" ends a line.
//
// The disk has one partition, an EFI system partition with FAT16, to which the
// files are added: path with slashes, in capitals and of the form 8.3 → content.
// Those named [EFIBootAMD64] or [EFIBootARM64] are started instead, for example
// a kernel (see [KernelImage]).
func BootImage(text string, files map[string][]byte) ([]byte, error) {
	all := make(map[string][]byte)
	for arch, name := range map[string]string{"amd64": EFIBootAMD64, "arm64": EFIBootARM64} {
		program, err := efiProgram(arch, text)
		if err != nil {
			return nil, err
		}
		all[name] = program
	}
	maps.Copy(all, files)
	volume, err := fatImage(all, partitionStart)
	if err != nil {
		return nil, err
	}
	sector, err := BootSector(text)
	if err != nil {
		return nil, err
	}
	const entryAt, efiSystem = 446, 0xef
	entry := sector[entryAt:]
	copy(entry[1:], []byte{0xfe, 0xff, 0xff}) // cylinder, head and sector: beyond what they can say
	entry[4] = efiSystem
	copy(entry[5:], []byte{0xfe, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], partitionStart)
	binary.LittleEndian.PutUint32(entry[12:], uint32(len(volume)/sectorSize))
	out := make([]byte, partitionStart*sectorSize, partitionStart*sectorSize+len(volume))
	copy(out, sector)
	return append(out, volume...), nil
}
