package vringtest

import "encoding/binary"

// Flags of an event suppression structure (virtio 1.4 §2.8.10).
const (
	EventEnable  = 0
	EventDisable = 1
	EventDesc    = 2
)

// SetDesc writes descriptor i of the ring, its flags as the last.
func (d *PackedDriver) SetDesc(i uint16, addr uint64, n uint32, id, flags uint16) {
	b := d.desc.Bytes()[int(i)*16:]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], id)
	d.SetDescFlags(i, flags)
}

// SetDescFlags writes the flags of descriptor i.
func (d *PackedDriver) SetDescFlags(i, flags uint16) { d.desc.Store16(int(i)*16+14, flags) }

// DescFlags reads the flags of descriptor i.
func (d *PackedDriver) DescFlags(i uint16) uint16 { return d.desc.Load16(int(i)*16 + 14) }

// SetTableDesc writes descriptor i of the indirect table that belongs to a
// buffer ID.
func (d *PackedDriver) SetTableDesc(owner, i uint16, addr uint64, n uint32, id, flags uint16) {
	b := d.tables.Bytes()[(int(owner-d.cfg.FirstID)*d.cfg.Indirect+int(i))*16:]
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], id)
	binary.LittleEndian.PutUint16(b[14:], flags)
}

// Table returns the address of the indirect table that belongs to a buffer ID.
func (d *PackedDriver) Table(owner uint16) uint64 {
	return d.tableAddr + uint64(int(owner-d.cfg.FirstID)*d.cfg.Indirect*16)
}

// SetDriverEvent writes the driver event suppression structure: the descriptor
// with the wrap counter in bit 15, and the flags.
func (d *PackedDriver) SetDriverEvent(event, flags uint16) {
	d.driver.Store32(0, uint32(flags)<<16|uint32(event))
}

// DeviceEvent reads the device event suppression structure.
func (d *PackedDriver) DeviceEvent() (event, flags uint16) {
	v := d.device.Load32(0)
	return uint16(v), uint16(v >> 16)
}
