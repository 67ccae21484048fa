package guesttest

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// What the boot sector below reads and writes, in sectors of 512 bytes.
const (
	loadFrom, loadSectors = 2000, 64
	saveTo, saveSectors   = 4000, 8
)

// bootSector returns a boot sector for a machine with a BIOS. Through the BIOS
// (int 13h, extended) it reads sectors loadFrom and following to address 0x8000,
// prints the text in the last of them, writes the first of them to saveTo, and
// prints "written" or "refused". It prints on the console and to the debug port.
func bootSector() []byte {
	code := []byte{
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0x8e, 0xc0, // mov es, ax
		0xfc,       // cld
		0xb4, 0x42, // mov ah, 0x42: read; dl is the drive
		0xbe, 0x00, 0x7d, // mov si, packet to read
		0xcd, 0x13, // int 0x13
		0xbe, 0x20, 0x7d, // mov si, "not read"
		0x72, 0x16, // jc end
		0xbe, 0x00, 0xfe, // mov si, the last sector read
		0xe8, 0x16, 0x00, // call print
		0xb8, 0x00, 0x43, // mov ax, 0x4300: write
		0xbe, 0x10, 0x7d, // mov si, packet to write
		0xcd, 0x13, // int 0x13
		0xbe, 0x40, 0x7d, // mov si, "written"
		0x73, 0x03, // jnc end
		0xbe, 0x60, 0x7d, // mov si, "refused"
		0xe8, 0x03, 0x00, // end: call print
		0xf4,       // halt: hlt
		0xeb, 0xfd, // jmp halt
		0xac,       // print: lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x0b, // jz done
		0xe6, 0xe9, // out 0xe9, al
		0xb4, 0x0e, // mov ah, 0x0e: teletype
		0xbb, 0x07, 0x00, // mov bx, 7
		0xcd, 0x10, // int 0x10
		0xeb, 0xf0, // jmp print
		0xc3, // done: ret
	}
	packet := func(sectors, address uint16, first uint64) []byte {
		p := []byte{16, 0}
		p = binary.LittleEndian.AppendUint16(p, sectors)
		p = binary.LittleEndian.AppendUint16(p, address)
		p = binary.LittleEndian.AppendUint16(p, 0) // segment
		return binary.LittleEndian.AppendUint64(p, first)
	}
	sector := make([]byte, 512)
	copy(sector, code)
	copy(sector[0x100:], packet(loadSectors, 0x8000, loadFrom))
	copy(sector[0x110:], packet(saveSectors, 0x8000, saveTo))
	copy(sector[0x120:], "not read\r\n")
	copy(sector[0x140:], "written\r\n")
	copy(sector[0x160:], "refused\r\n")
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// bootable makes an image that boots, and prints the text.
func bootable(t *testing.T, name, text string) string {
	t.Helper()
	file := image(t, name, 16*mib)
	patch(t, file, 0, bootSector())
	data := make([]byte, loadSectors*512)
	for i := range data {
		data[i] = byte(i*7 + i/512)
	}
	copy(data[(loadSectors-1)*512:], text+"\r\n\x00")
	patch(t, file, loadFrom*512, data)
	return file
}

// TestVMFirmware boots disks by the BIOS, whose own driver reads and writes them
// and leaves its queue live, and then Linux by the same server. The BIOS knows
// nothing of read-only disks and writes to one: it is we who must refuse.
func TestVMFirmware(t *testing.T) {
	parallel(t, 1)
	const text = "read by the firmware from the last of many sectors"
	free, locked := bootable(t, "free.img", text), bootable(t, "locked.img", text)
	before := digest(t, locked)
	s := serve(t, checked, free, locked+",readonly,serial=LOCKED")
	s.trouble = true // a write to a disk that is read-only may be worth a line

	bios := func(i int, until string) vm.Result {
		res, err := vm.Run(t.Context(), vm.Config{
			BootDisk: true, Until: until,
			Devices: []string{vm.VFIOUser(s.exports[i].Socket, vm.BootIndex(0))},
		})
		require.NoError(t, err)
		assert.Contains(t, res.Debug, text)
		return res
	}
	for range 2 {
		bios(0, "written")
		assert.Equal(t, content(t, free, loadFrom*512, saveSectors*512), content(t, free, saveTo*512, saveSectors*512))
		patch(t, free, saveTo*512, make([]byte, saveSectors*512))
	}
	bios(1, "refused")
	assert.Equal(t, before, digest(t, locked), "the image is what it was")

	g := boot(t, vm.Config{Devices: s.devices()})
	assert.Contains(t, g.sh(t, `
		for d in vda vdb; do
			dd if=/dev/$d bs=512 skip=2063 count=1 status=none | head -n 1
		done
		blkdiscard -f /dev/vda
		mkfs.ext4 -q /dev/vda
	`), text+"\r\n"+text)
	res := g.powerOff(t)
	assert.Regexp(t, `(?i)virtio-blk|virtio_blk|virtio disk`, res.Firmware, "the firmware had the disks before Linux")
	s.stop(t)
	assert.Equal(t, before, digest(t, locked), "the image is what it was")
	run(t, "e2fsck", "-fn", free)
}
