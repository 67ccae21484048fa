package vringtest

import "encoding/binary"

// What follows reads and writes the ring as it lies in memory. A hostile driver
// does so; Add and Collect go on as if nothing had happened.

// SetDesc writes descriptor i of the table.
func (d *Driver) SetDesc(i uint16, addr uint64, n uint32, flags, next uint16) {
	putDesc(d.desc.Bytes()[int(i)*16:], addr, n, flags, next)
}

// SetTableDesc writes descriptor i of the indirect table that belongs to
// descriptor owner.
func (d *Driver) SetTableDesc(owner, i uint16, addr uint64, n uint32, flags, next uint16) {
	off := (int(owner)*d.cfg.Indirect + int(i)) * 16
	putDesc(d.tables.Bytes()[off:], addr, n, flags, next)
}

// Table returns the address of the indirect table that belongs to descriptor
// owner.
func (d *Driver) Table(owner uint16) uint64 {
	return d.tableAddr + uint64(int(owner)*d.cfg.Indirect*16)
}

// SetAvail writes the entry of the available ring for an index.
func (d *Driver) SetAvail(index, head uint16) {
	off := 4 + 2*(int(index)&(d.cfg.Size-1))
	binary.LittleEndian.PutUint16(d.avail.Bytes()[off:], head)
}

// SetAvailIndex writes the available index.
func (d *Driver) SetAvailIndex(index uint16) { d.avail.Store16(2, index) }

// SetAvailFlags writes the flags of the available ring.
func (d *Driver) SetAvailFlags(flags uint16) { d.avail.Store16(0, flags) }

// UsedFlags reads the flags of the used ring.
func (d *Driver) UsedFlags() uint16 { return d.used.Load16(0) }

// UsedIndex reads the used index.
func (d *Driver) UsedIndex() uint16 { return d.used.Load16(2) }

// AvailEvent reads the index for which the device wants a notification.
func (d *Driver) AvailEvent() uint16 { return d.used.Load16(4 + 8*d.cfg.Size) }

func putDesc(b []byte, addr uint64, n uint32, flags, next uint16) {
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}
