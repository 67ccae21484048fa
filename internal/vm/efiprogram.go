package vm

import (
	"encoding/binary"
	"fmt"
	"unicode/utf16"
)

// efiCode prints the text that follows it on UEFI's console and then halts.
// The entry point gets the system table as its second argument; the console is
// at 0x40 of that, and OutputString at 8 of the console (UEFI 2.11 §4.3, §12.4).
var efiCode = map[string]struct {
	machine uint16 // PE's number of the processor
	code    []byte
}{
	"amd64": {0x8664, []byte{
		0x48, 0x83, 0xec, 0x28, // sub rsp, 0x28
		0x48, 0x8b, 0x4a, 0x40, // mov rcx, [rdx+0x40]
		0x48, 0x8d, 0x15, 0x07, 0x00, 0x00, 0x00, // lea rdx, [rip+7]: the text
		0xff, 0x51, 0x08, // call [rcx+8]
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
		0x90, // aligns the text
	}},
	"arm64": {0xaa64, []byte{
		0x20, 0x20, 0x40, 0xf9, // ldr x0, [x1, #0x40]
		0xa1, 0x00, 0x00, 0x10, // adr x1, .+20: the text
		0x02, 0x04, 0x40, 0xf9, // ldr x2, [x0, #8]
		0x40, 0x00, 0x3f, 0xd6, // blr x2
		0x7f, 0x20, 0x03, 0xd5, // halt: wfi
		0xff, 0xff, 0xff, 0x17, // b halt
	}},
}

// efiProgram returns a UEFI application, in the PE32+ format, that prints the
// text on the console and halts. It has one section, needs no relocation and is
// one page long when loaded.
func efiProgram(arch, text string) ([]byte, error) {
	p, ok := efiCode[arch]
	if !ok {
		return nil, fmt.Errorf("vm: no UEFI program for %s", arch)
	}
	const (
		peAt, optionalAt, sectionAt = 0x40, 0x58, 0x148
		optionalSize                = sectionAt - optionalAt
		headers, alignment, page    = 0x200, 0x200, 0x1000

		executable, largeAddresses = 0x0002, 0x0020
		peMagic, application       = 0x020b, 10
		hasCode, execute, read     = 0x00000020, 0x20000000, 0x40000000
	)
	body := p.code
	for _, unit := range append(utf16.Encode([]rune(text)), 0) {
		body = binary.LittleEndian.AppendUint16(body[:len(body):len(body)], unit)
	}
	size := (len(body) + alignment - 1) / alignment * alignment
	if size > page {
		return nil, fmt.Errorf("vm: a text of %d bytes does not fit into the UEFI program", len(text))
	}
	out := make([]byte, headers+size)
	u16 := func(at int, v uint16) { binary.LittleEndian.PutUint16(out[at:], v) }
	u32 := func(at int, v uint32) { binary.LittleEndian.PutUint32(out[at:], v) }

	copy(out, "MZ")
	u32(0x3c, peAt)
	copy(out[peAt:], "PE\x00\x00")
	u16(peAt+4, p.machine)
	u16(peAt+6, 1) // sections
	u16(peAt+20, optionalSize)
	u16(peAt+22, executable|largeAddresses)

	u16(optionalAt, peMagic)
	u32(optionalAt+4, uint32(size)) // of code
	u32(optionalAt+16, page)        // entry point
	u32(optionalAt+20, page)        // base of code
	u32(optionalAt+32, page)        // section alignment
	u32(optionalAt+36, alignment)   // file alignment
	u32(optionalAt+56, 2*page)      // size of the image
	u32(optionalAt+60, headers)     // size of the headers
	u16(optionalAt+68, application) // subsystem
	u32(optionalAt+108, 16)         // data directories, all empty

	copy(out[sectionAt:], ".text")
	u32(sectionAt+8, uint32(len(body)))
	u32(sectionAt+12, page)
	u32(sectionAt+16, uint32(size))
	u32(sectionAt+20, headers)
	u32(sectionAt+36, hasCode|execute|read)
	copy(out[headers:], body)
	return out, nil
}
