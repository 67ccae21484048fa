package vm

import (
	"encoding/binary"
	"fmt"
)

// sectorSize is the size of a boot sector in bytes.
const sectorSize = 512

// BootSector returns a boot sector for a machine with a BIOS. It prints the
// text on the console through the BIOS and writes it to the debug port (0xe9),
// and then halts. The text is ASCII of at most 400 bytes.
func BootSector(text string) ([]byte, error) {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xfc,             // cld
		0xbe, 0x00, 0x00, // mov si, text
		0xac,       // next: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x0b, // jz halt
		0xe6, 0xe9, // out 0xe9, al
		0xb4, 0x0e, // mov ah, 0x0e: teletype
		0xbb, 0x07, 0x00, // mov bx, 7
		0xcd, 0x10, // int 0x10
		0xeb, 0xf0, // jmp next
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
	}
	const loadedAt, textAt = 0x7c00, 6
	if len(text) > 400 {
		return nil, fmt.Errorf("vm: a text of %d bytes does not fit into the boot sector", len(text))
	}
	sector := make([]byte, sectorSize)
	binary.LittleEndian.PutUint16(code[textAt:], uint16(loadedAt+len(code)))
	copy(sector[copy(sector, code):], text)
	sector[510], sector[511] = 0x55, 0xaa
	return sector, nil
}
