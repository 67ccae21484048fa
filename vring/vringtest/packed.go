package vringtest

import (
	"encoding/binary"
	"fmt"

	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/vring"
)

// PackedDriver is the driver side of one packed virtqueue. It belongs to one
// goroutine.
//
// It keeps what it needs to know in memory of its own, so that neither the
// device nor SetDesc and its like can confuse it.
type PackedDriver struct {
	cfg Config

	descAddr, driverAddr, deviceAddr, tableAddr uint64
	desc, driver, device, tables                shm.Window

	ids   []uint16 // that are free, as offsets from the first
	count []uint16 // per ID: descriptors of the chain in flight, 0 for none
	freeN int      // descriptors

	avail, used counter // where the next descriptor is made available and used
	added       int     // chains that are in flight or wait for Kick
	waiting     int     // of them the device does not know
	kicked      counter // where the first of those starts
	flags       uint16  // which its first descriptor will have
}

// counter is a place in the ring, with the wrap counter of whoever is there.
type counter struct {
	off  int
	wrap bool
}

func (c counter) forward(n, size int) counter {
	if c.off += n; c.off >= size {
		c.off -= size
		c.wrap = !c.wrap
	}
	return c
}

func (c counter) availFlags() uint16 {
	if c.wrap {
		return FlagAvail
	}
	return FlagUsed
}

func (c counter) usedFlags() uint16 {
	if c.wrap {
		return FlagAvail | FlagUsed
	}
	return 0
}

// event returns the counter as an event suppression structure has it.
func (c counter) event() uint16 {
	if c.wrap {
		return uint16(c.off) | 1<<15
	}
	return uint16(c.off)
}

// passed says whether event is one of the n descriptors from c on.
func (c counter) passed(event uint16, n, size int) bool {
	for range n {
		if c.event() == event {
			return true
		}
		c = c.forward(1, size)
	}
	return false
}

var _ Virtqueue = (*PackedDriver)(nil)

// NewPackedDriver lays a packed virtqueue out in mem.
func NewPackedDriver(mem *Memory, cfg Config) (*PackedDriver, error) {
	start := counter{int(cfg.Start &^ (1 << 15)), cfg.Start>>15 == 0}
	d := &PackedDriver{
		cfg: cfg, ids: make([]uint16, cfg.Size), count: make([]uint16, cfg.Size), freeN: cfg.Size,
		avail: start, used: start, kicked: start,
	}
	for i := range d.ids {
		d.ids[i] = uint16(cfg.Size - 1 - i)
	}
	skew := 0
	if cfg.Skew {
		skew = 1
	}
	err := layOut(mem, []part{
		{&d.descAddr, &d.desc, cfg.Size * 16, 16 * skew},
		{&d.driverAddr, &d.driver, 4, 4 * skew},
		{&d.deviceAddr, &d.device, 4, 4 * skew},
		{&d.tableAddr, &d.tables, cfg.Size * cfg.Indirect * 16, 8 * skew},
	})
	if err != nil {
		return nil, err
	}
	for i := range cfg.Size { // used in this lap, or in the one before
		flags := counter{wrap: start.wrap == (i < start.off)}.usedFlags()
		d.SetDesc(uint16(i), 0, 0, 0, flags)
	}
	return d, nil
}

// Queue implements Virtqueue.
func (d *PackedDriver) Queue() vring.Config {
	return vring.Config{
		Size: d.cfg.Size, Desc: d.descAddr, Driver: d.driverAddr, Device: d.deviceAddr,
		EventIdx: d.cfg.EventIdx, Indirect: d.cfg.Indirect > 0,
		MaxChain: max(d.cfg.Size, d.cfg.Indirect), Start: d.cfg.Start,
	}
}

// Free implements Virtqueue.
func (d *PackedDriver) Free() int { return d.freeN }

// InFlight implements Virtqueue.
func (d *PackedDriver) InFlight() int { return d.added }

// Add implements Virtqueue.
func (d *PackedDriver) Add(readable, writable []vring.Segment) (head uint16, err error) {
	return d.AddMixed(readable, writable, len(readable)+len(writable))
}

// AddIndirect implements Virtqueue.
func (d *PackedDriver) AddIndirect(readable, writable []vring.Segment) (head uint16, err error) {
	return d.AddMixed(readable, writable, 0)
}

// AddMixed implements Virtqueue.
func (d *PackedDriver) AddMixed(readable, writable []vring.Segment, direct int) (head uint16, err error) {
	total := len(readable) + len(writable)
	need, rest := min(direct, total), max(total-direct, 0)
	switch {
	case need > 0 && rest > 0:
		return 0, fmt.Errorf("%w: %d+%d descriptors", ErrMixed, need, rest)
	case rest > 0:
		need = 1
	}
	if need == 0 || need > d.freeN || rest > d.cfg.Indirect {
		return 0, fmt.Errorf("%w: %d+%d descriptors", ErrNoRoom, need, rest)
	}
	n := d.ids[len(d.ids)-1]
	d.ids = d.ids[:len(d.ids)-1]
	d.count[n] = uint16(need)
	head = d.cfg.FirstID + n
	if rest > 0 {
		for i := range total {
			s, flags := segment(readable, writable, i)
			d.SetTableDesc(head, uint16(i), s.Addr, s.Len, 0xdead, flags)
		}
		d.put(vring.Segment{Addr: d.Table(head), Len: uint32(rest * 16)}, head, FlagIndirect, d.waiting == 0)
	} else {
		for i := range total {
			s, flags := segment(readable, writable, i)
			id := uint16(0xdead) // nobody may look at it
			if i == total-1 {
				id = head
			} else {
				flags |= FlagNext
			}
			d.put(s, id, flags, i == 0 && d.waiting == 0)
		}
	}
	d.added++
	d.waiting++
	return head, nil
}

// put writes the next descriptor, but not the flags of the first one that the
// device is going to see.
func (d *PackedDriver) put(s vring.Segment, id, flags uint16, first bool) {
	flags |= d.avail.availFlags()
	if first {
		d.flags = flags
		flags = d.DescFlags(uint16(d.avail.off))
	}
	d.SetDesc(uint16(d.avail.off), s.Addr, s.Len, id, flags)
	d.avail = d.avail.forward(1, d.cfg.Size)
	d.freeN--
}

// Kick implements Virtqueue. The device looks at the descriptor after the last
// one that it found available, so the flags of the first one added show it all.
func (d *PackedDriver) Kick() (notify bool) {
	if d.waiting == 0 {
		return false
	}
	was := d.kicked
	d.SetDescFlags(uint16(was.off), d.flags)
	d.kicked, d.waiting = d.avail, 0
	shm.Fence()
	switch event, flags := d.DeviceEvent(); {
	case flags == EventDisable:
		return false
	case flags == EventDesc && d.cfg.EventIdx:
		n := d.avail.off - was.off
		if n <= 0 {
			n += d.cfg.Size
		}
		return was.passed(event, n, d.cfg.Size)
	}
	return true
}

// Collect implements Virtqueue.
func (d *PackedDriver) Collect() (u Used, ok bool, err error) {
	slot := uint16(d.used.off)
	flags := d.DescFlags(slot)
	if flags&(FlagAvail|FlagUsed) != d.used.usedFlags() {
		return Used{}, false, nil
	}
	if d.added == d.waiting {
		return Used{}, false, fmt.Errorf("%w: descriptor %d is used, nothing in flight", ErrDevice, slot)
	}
	b := d.desc.Bytes()[d.used.off*16:]
	u.Head = binary.LittleEndian.Uint16(b[12:])
	if flags&FlagWrite != 0 {
		u.Written = binary.LittleEndian.Uint32(b[8:])
	}
	n := u.Head - d.cfg.FirstID
	if int(n) >= d.cfg.Size || d.count[n] == 0 {
		return Used{}, false, fmt.Errorf("%w: used chain %d is not in flight", ErrDevice, u.Head)
	}
	d.used = d.used.forward(int(d.count[n]), d.cfg.Size)
	d.freeN += int(d.count[n])
	d.count[n] = 0
	d.ids = append(d.ids, n)
	d.added--
	return u, true, nil
}

// EnableInterrupts implements Virtqueue.
func (d *PackedDriver) EnableInterrupts() (more bool) {
	if d.cfg.EventIdx {
		d.SetDriverEvent(d.used.event(), EventDesc)
	} else {
		d.SetDriverEvent(0, EventEnable)
	}
	shm.Fence()
	return d.DescFlags(uint16(d.used.off))&(FlagAvail|FlagUsed) == d.used.usedFlags()
}

// DisableInterrupts implements Virtqueue.
func (d *PackedDriver) DisableInterrupts() { d.SetDriverEvent(0, EventDisable) }
