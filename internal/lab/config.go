package lab

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

const configSize = virtiopci.ExtendedConfigLen

// The capability area of the function: where the standard ones are, and where the
// endpoint's own begin.
const (
	capPM   = 0x40
	capMSI  = 0x48
	capPCIe = 0x60
	capMSIX = 0x9c
	capFree = 0xa8

	capIDMSI = 0x05

	multifunction = 0x80 // in the header type

	msiControl = capMSI + 2
	msiEnable  = 1 << 0
	msiCapable = 1 // shift of the log2 of the vectors there are
	msiAllowed = 4 // and of those the RC wants
	msi64      = 1 << 7
	msiMasks   = 1 << 8

	msixControl = capMSIX + virtiopci.MSIXCapControl
)

var le = binary.LittleEndian

// configSpace is 4096 bytes with a mask of the bits that the bus can write.
type configSpace struct {
	image, writable [configSize]byte
}

func (c *configSpace) read(p []byte, off int) { copy(p, c.image[off:]) }

// write is a write from the bus.
func (c *configSpace) write(off int, p []byte) {
	for i, v := range p {
		mask := c.writable[off+i]
		c.image[off+i] = c.image[off+i]&^mask | v&mask
	}
}

func (c *configSpace) get16(off int) uint16     { return le.Uint16(c.image[off:]) }
func (c *configSpace) get32(off int) uint32     { return le.Uint32(c.image[off:]) }
func (c *configSpace) put16(off int, v uint16)  { le.PutUint16(c.image[off:], v) }
func (c *configSpace) put32(off int, v uint32)  { le.PutUint32(c.image[off:], v) }
func (c *configSpace) mask16(off int, v uint16) { le.PutUint16(c.writable[off:], v) }
func (c *configSpace) mask32(off int, v uint32) { le.PutUint32(c.writable[off:], v) }

// putHeader makes a type 0 header's registers writable.
func (c *configSpace) putHeader() {
	c.put16(virtiopci.ConfigStatus, virtiopci.StatusCapabilityList)
	c.mask16(virtiopci.ConfigCommand, virtiopci.CommandMemory|virtiopci.CommandBusMaster|
		virtiopci.CommandParity|virtiopci.CommandSERR|virtiopci.CommandINTxDisable)
	c.writable[virtiopci.ConfigCacheLineSize] = 0xff
	c.writable[virtiopci.ConfigLatencyTimer] = 0xff
	c.writable[virtiopci.ConfigInterruptLine] = 0xff
}

// putBAR makes BAR n one of size bytes, or nothing if size is 0.
func (c *configSpace) putBAR(n int, size uint64, is64, prefetchable bool) {
	off := virtiopci.ConfigBAR0 + 4*n
	var flags, mask uint32
	if size > 0 {
		mask = ^uint32(size - 1)
		if is64 {
			flags |= virtiopci.BAR64
		}
		if prefetchable {
			flags |= virtiopci.BARPrefetchable
		}
	}
	c.put32(off, flags)
	c.mask32(off, mask)
	if is64 && size > 0 {
		c.put32(off+4, 0)
		c.mask32(off+4, ^uint32(0))
	}
}

// barAddr returns the address that the bus gave BAR n.
func (c *configSpace) barAddr(n int, is64 bool) uint64 {
	off := virtiopci.ConfigBAR0 + 4*n
	addr := uint64(c.get32(off) &^ virtiopci.BARFlagsMask)
	if is64 {
		addr |= uint64(c.get32(off+4)) << 32
	}
	return addr
}

func (c *configSpace) command() uint16 { return c.get16(virtiopci.ConfigCommand) }
func (c *configSpace) busMaster() bool { return c.command()&virtiopci.CommandBusMaster != 0 }
func (c *configSpace) memoryOn() bool  { return c.command()&virtiopci.CommandMemory != 0 }

// putPM writes the power management capability (PCI-PM 1.2 §3.2).
func (c *configSpace) putPM(next byte) {
	copy(c.image[capPM:], []byte{virtiopci.CapIDPowerManagement, next, 0x03, 0x00, 0x08, 0x00, 0, 0})
	c.mask16(capPM+4, 0x0003) // power state; no soft reset
}

// putMSI writes the MSI capability (PCIe 7.7.1): 64-bit, with masks.
func (c *configSpace) putMSI(next byte, log2Vectors int) {
	c.image[capMSI], c.image[capMSI+1] = capIDMSI, next
	c.put16(msiControl, msi64|msiMasks|uint16(log2Vectors)<<msiCapable)
	c.mask16(msiControl, msiEnable|7<<msiAllowed)
	c.mask32(capMSI+4, ^uint32(3))
	c.mask32(capMSI+8, ^uint32(0))
	c.mask16(capMSI+12, 0xffff)
	c.mask32(capMSI+16, uint32(1<<(1<<log2Vectors)-1))
}

// putPCIe writes the PCI Express capability (PCIe 7.5.3), version 2, of an
// endpoint on a link of 8 GT/s and four lanes.
func (c *configSpace) putPCIe(next byte) {
	const (
		deviceCap, deviceControl          = 4, 8
		linkCap, linkControl, linkStatus  = 12, 16, 18
		deviceCap2, deviceControl2        = 36, 40
		linkCap2, linkControl2, lnkStatus = 44, 48, 50
	)
	c.image[capPCIe], c.image[capPCIe+1] = virtiopci.CapIDPCIExpress, next
	c.put16(capPCIe+2, 2)
	c.put32(capPCIe+deviceCap, 1<<15|1) // role-based errors, 256 bytes of payload
	c.mask16(capPCIe+deviceControl, 0x7eff)
	c.put32(capPCIe+linkCap, 4<<4|3)
	c.mask16(capPCIe+linkControl, 0x01cb)
	c.put16(capPCIe+linkStatus, 4<<4|3)
	c.put32(capPCIe+deviceCap2, 0)
	c.mask16(capPCIe+deviceControl2, 0x001f)
	c.put32(capPCIe+linkCap2, 0x0e) // 2.5, 5 and 8 GT/s
	c.put16(capPCIe+linkControl2, 3)
	c.put16(capPCIe+lnkStatus, 0)
}

// putMSIX writes an MSI-X capability at off.
func (c *configSpace) putMSIX(off int, next byte, vectors int, table, pba uint32) {
	virtiopci.MSIXCap{
		Vectors: vectors, TableBAR: uint8(table & 7), TableOffset: table &^ 7, PBABAR: uint8(pba & 7), PBAOffset: pba &^ 7,
	}.Encode(c.image[off:], next)
	c.mask16(off+virtiopci.MSIXCapControl, virtiopci.MSIXEnable|virtiopci.MSIXFunctionMask)
}

// controllerConfig is the configuration space of the controller itself, in the
// endpoint's guest.
func controllerConfig() *configSpace {
	c := new(configSpace)
	c.putHeader()
	c.put16(virtiopci.ConfigVendorID, VendorID)
	c.put16(virtiopci.ConfigDeviceID, DeviceID)
	c.image[virtiopci.ConfigRevision] = 1
	c.image[virtiopci.ConfigClass+1], c.image[virtiopci.ConfigClass+2] = 0x80, 0x08
	c.putBAR(registersBAR, registersSize, false, false)
	c.putBAR(windowBAR, windowSize, true, true)
	c.putBAR(msixBAR, msixBARSize, false, false)
	c.image[virtiopci.ConfigCapabilities] = capMSIX
	c.putMSIX(capMSIX, 0, numVectors, msixBAR, msixPBA|msixBAR)
	return c
}

// definition is what the endpoint made of a function that the RC sees, and what the
// RC wrote there. The lab's lock guards it.
type definition struct {
	configSpace
	bars               [numBARs][strideBAR / 4]uint32
	msi, msix          uint32
	msixTable, msixPBA uint32
	capNext            uint32
	control            uint32 // of the function
}

func (d *definition) reset() {
	*d = definition{}
	d.rebuild()
}

func (d *definition) barControl(bar int) uint32 { return d.bars[bar][BARControl/4] & barControlBits }

func (d *definition) hasBAR(bar int) bool { return d.barControl(bar)&BARPresent != 0 }

// size returns the size of a BAR in bytes, 0 if it is not there.
func (d *definition) size(bar int) uint64 {
	if !d.hasBAR(bar) {
		return 0
	}
	return pair(d.bars[bar][BARSizeLo/4:])
}

// pair is a 64-bit value in two registers, low first.
func pair(r []uint32) uint64 { return uint64(r[0]) | uint64(r[1])<<32 }

func (d *definition) msiVectors() int {
	if d.msi&CapPresent == 0 {
		return 0
	}
	return 1 << min(d.msi&7, 5)
}

func (d *definition) msixVectors() int {
	if d.msix&CapPresent == 0 {
		return 0
	}
	return int(d.msix&virtiopci.MSIXSizeMask) + 1
}

// rebuild derives the controller's own parts of configuration space from the
// registers. What the RC wrote there is reset.
func (d *definition) rebuild() {
	d.put16(virtiopci.ConfigCommand, 0)
	d.image[virtiopci.ConfigCacheLineSize] = 0
	d.image[virtiopci.ConfigLatencyTimer] = 0
	d.image[virtiopci.ConfigInterruptLine] = 0
	d.putHeader()
	upper := false
	for n := range numBARs {
		if upper {
			upper = false
			continue
		}
		ctrl := d.barControl(n)
		upper = ctrl&(BARPresent|BAR64Bit) == BARPresent|BAR64Bit && n < numBARs-1
		d.putBAR(n, d.size(n), upper, ctrl&BARPrefetchable != 0)
	}
	d.link()
}

// link writes the standard capabilities and their chain, last first.
func (d *definition) link() {
	clear(d.image[capPM:capFree])
	clear(d.writable[capPM:capFree])
	next := byte(d.capNext)
	if n := d.msixVectors(); n > 0 {
		d.putMSIX(capMSIX, next, n, d.msixTable, d.msixPBA)
		next = capMSIX
	}
	d.putPCIe(next)
	next = capPCIe
	if n := d.msiVectors(); n > 0 {
		d.putMSI(next, bits.TrailingZeros(uint(n)))
		next = capMSI
	}
	d.putPM(next)
	d.image[virtiopci.ConfigCapabilities] = capPM
}

// poke is a write from the endpoint's side.
func (d *definition) poke(off int, p []byte) {
	for i, v := range p {
		if at := off + i; !controllers(at) {
			d.image[at] = v
		}
	}
}

// controllers says whether a byte of configuration space is the controller's.
func controllers(off int) bool {
	return off >= virtiopci.ConfigCommand && off < virtiopci.ConfigRevision ||
		off >= virtiopci.ConfigBAR0 && off < virtiopci.ConfigBAR0+4*numBARs ||
		off >= virtiopci.ConfigROM && off <= virtiopci.ConfigCapabilities ||
		off >= capPM && off < capFree
}

// check says what keeps the function from being shown to an RC.
func (d *definition) check() error {
	for n := range numBARs {
		if !d.hasBAR(n) {
			continue
		}
		size := d.size(n)
		if size < minBARSize || size > maxBARSize || size&(size-1) != 0 {
			return fmt.Errorf("BAR %d has %d bytes; a power of two from %d to %d is possible", n, size, minBARSize, maxBARSize)
		}
		if d.barControl(n)&BAR64Bit != 0 && (n == numBARs-1 || d.hasBAR(n+1)) {
			return fmt.Errorf("BAR %d has 64 bits, and there is no room behind it", n)
		}
	}
	if n := d.msixVectors(); n > 0 {
		if err := d.inBAR("MSI-X table", d.msixTable, uint64(n)*virtiopci.MSIXEntryLen); err != nil {
			return err
		}
		if err := d.inBAR("MSI-X PBA", d.msixPBA, uint64(n+63)/64*8); err != nil {
			return err
		}
	}
	if d.capNext != 0 && (d.capNext < capFree || d.capNext > 0xfc || d.capNext%4 != 0) {
		return fmt.Errorf("the endpoint's own capabilities are at %#x", d.capNext)
	}
	return nil
}

func (d *definition) inBAR(what string, place uint32, n uint64) error {
	bar, off := int(place&7), uint64(place&^7)
	if bar >= numBARs || off+n > d.size(bar) {
		return fmt.Errorf("the %s of %d bytes at %#x is not inside BAR %d", what, n, off, bar)
	}
	return nil
}

func (d *definition) msixOn() bool {
	return d.msixVectors() > 0 && d.get16(msixControl)&virtiopci.MSIXEnable != 0
}

// msiOn returns how many MSI vectors the RC enabled.
func (d *definition) msiOn() int {
	if d.msiVectors() == 0 || d.get16(msiControl)&msiEnable == 0 {
		return 0
	}
	return min(d.msiVectors(), 1<<(d.get16(msiControl)>>msiAllowed&7))
}
