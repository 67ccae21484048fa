package vm

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEFIProgram(t *testing.T) {
	for arch, machine := range map[string]uint16{
		"amd64": pe.IMAGE_FILE_MACHINE_AMD64,
		"arm64": pe.IMAGE_FILE_MACHINE_ARM64,
	} {
		image, err := efiProgram(arch, "hello")
		require.NoError(t, err)
		f, err := pe.NewFile(bytes.NewReader(image))
		require.NoError(t, err)
		assert.Equal(t, machine, f.Machine)
		header := f.OptionalHeader.(*pe.OptionalHeader64)
		assert.EqualValues(t, pe.IMAGE_SUBSYSTEM_EFI_APPLICATION, header.Subsystem)
		assert.Equal(t, f.Sections[0].VirtualAddress, header.AddressOfEntryPoint)
		code, err := f.Sections[0].Data()
		require.NoError(t, err)
		// The text is where the code looks for it, and aligned.
		at := 24
		if arch == "amd64" {
			at = 15 + int(binary.LittleEndian.Uint32(code[11:]))
		}
		assert.Zero(t, at%2)
		assert.Equal(t, "h\x00e\x00l\x00l\x00o\x00\x00\x00", string(code[at:at+12]))
	}
	_, err := efiProgram("amd64", strings.Repeat("x", 4096))
	assert.Error(t, err)
	_, err = efiProgram("riscv64", "x")
	assert.Error(t, err)
}

func TestBootImageLayout(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 3<<20) // 48 MiB
	image, err := BootImage("hello", map[string][]byte{"BIG.BIN": big})
	require.NoError(t, err)
	assert.Equal(t, []byte{0x55, 0xaa}, image[510:512])
	entry := image[446:462]
	assert.EqualValues(t, 0xef, entry[4], "an EFI system partition")
	start, size := binary.LittleEndian.Uint32(entry[8:]), binary.LittleEndian.Uint32(entry[12:])
	assert.Equal(t, len(image), int(start+size)*sectorSize, "the partition ends with the disk")
	volume := image[start*sectorSize:]
	assert.EqualValues(t, 2, volume[13], "clusters grow with the content")
	assert.Equal(t, size, binary.LittleEndian.Uint32(volume[32:]))
	assert.True(t, bytes.Contains(volume, big), "a file is in one piece")

	for _, name := range []string{"lower.txt", "TOOLONGNAME", "A.LONG", "A.B.C", "", ".X", "A//B"} {
		_, err := BootImage("hello", map[string][]byte{name: nil})
		assert.Error(t, err, name)
	}
	many := make(map[string][]byte)
	for c := 'A'; c < 'P'; c++ {
		many[string(c)] = nil
	}
	_, err = BootImage("hello", many)
	assert.Error(t, err, "too many entries")
	_, err = BootImage(strings.Repeat("x", 401), nil)
	assert.Error(t, err)
}
