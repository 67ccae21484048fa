package vringtest

import (
	"encoding/binary"
	"fmt"

	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/vring"
)

// Driver is the driver side of one split virtqueue. It belongs to one goroutine.
//
// It keeps what it needs to know in memory of its own, so that neither the
// device nor SetDesc and its like can confuse it.
type Driver struct {
	cfg Config

	descAddr, availAddr, usedAddr, tableAddr uint64
	desc, avail, used, tables                shm.Window

	next     []uint16 // per descriptor: the next of its chain or of the free list
	count    []uint16 // per head: descriptors of the chain in flight, 0 for none
	free     uint16   // first free descriptor
	freeN    int
	availIdx uint16 // chains added
	kicked   uint16 // of them the device knows
	usedIdx  uint16 // chains collected
}

var _ Virtqueue = (*Driver)(nil)

// NewDriver lays a split virtqueue out in mem.
func NewDriver(mem *Memory, cfg Config) (*Driver, error) {
	d := &Driver{
		cfg:  cfg,
		next: make([]uint16, cfg.Size), count: make([]uint16, cfg.Size), freeN: cfg.Size,
		availIdx: cfg.Start, kicked: cfg.Start, usedIdx: cfg.Start,
	}
	for i := range d.next {
		d.next[i] = uint16(i + 1)
	}
	skew := 0
	if cfg.Skew {
		skew = 1
	}
	err := layOut(mem, []part{
		{&d.descAddr, &d.desc, cfg.Size * 16, 16 * skew},
		{&d.availAddr, &d.avail, 6 + cfg.Size*2, 2 * skew},
		{&d.usedAddr, &d.used, 6 + cfg.Size*8, 4 * skew},
		{&d.tableAddr, &d.tables, cfg.Size * cfg.Indirect * 16, 8 * skew},
	})
	if err != nil {
		return nil, err
	}
	d.SetAvailIndex(cfg.Start)
	d.used.Store16(2, cfg.Start)
	d.setUsedEvent()
	if cfg.EventIdx {
		d.used.Store16(4+8*cfg.Size, cfg.Start)
	}
	return d, nil
}

// Queue returns what the device has to know of the virtqueue.
func (d *Driver) Queue() vring.Config {
	return vring.Config{
		Size: d.cfg.Size, Desc: d.descAddr, Driver: d.availAddr, Device: d.usedAddr,
		EventIdx: d.cfg.EventIdx, Indirect: d.cfg.Indirect > 0,
		MaxChain: max(d.cfg.Size, d.cfg.Indirect), Start: d.cfg.Start,
	}
}

// Free returns how many descriptors are free.
func (d *Driver) Free() int { return d.freeN }

// InFlight returns how many chains were added and not yet collected.
func (d *Driver) InFlight() int { return int(d.availIdx - d.usedIdx) }

// Add adds a chain of direct descriptors, which the device sees after Kick. It
// returns the head, by which Collect will name the chain.
func (d *Driver) Add(readable, writable []vring.Segment) (head uint16, err error) {
	return d.AddMixed(readable, writable, len(readable)+len(writable))
}

// AddIndirect adds a chain of one descriptor that refers to a table of the rest.
func (d *Driver) AddIndirect(readable, writable []vring.Segment) (head uint16, err error) {
	return d.AddMixed(readable, writable, 0)
}

// AddMixed adds a chain whose first descriptors are direct; the rest are in an
// indirect table.
func (d *Driver) AddMixed(readable, writable []vring.Segment, direct int) (head uint16, err error) {
	total := len(readable) + len(writable)
	direct = min(direct, total)
	need, rest := direct, total-direct
	if rest > 0 {
		need++
	}
	if need == 0 || need > d.freeN || rest > d.cfg.Indirect {
		return 0, fmt.Errorf("%w: %d+%d descriptors", ErrNoRoom, direct, rest)
	}
	head = d.free
	d.count[head] = uint16(need)
	var last uint16
	for n := range total {
		s, flags := segment(readable, writable, n)
		if n >= direct {
			if n == direct {
				last = d.take()
				d.SetDesc(last, d.Table(last), uint32(rest*16), FlagIndirect, 0)
			}
			i := uint16(n - direct)
			if n < total-1 {
				flags |= FlagNext
			}
			d.SetTableDesc(last, i, s.Addr, s.Len, flags, i+1)
			continue
		}
		last = d.take()
		if n < need-1 {
			flags |= FlagNext
		}
		d.SetDesc(last, s.Addr, s.Len, flags, d.free)
	}
	d.SetAvail(d.availIdx, head)
	d.availIdx++
	return head, nil
}

// take removes the first descriptor from the free list. What comes next in the
// list becomes the next of the chain.
func (d *Driver) take() uint16 {
	i := d.free
	d.free = d.next[i]
	d.freeN--
	return i
}

// Kick makes what was added visible and reports whether the device wants to be
// notified of it.
func (d *Driver) Kick() (notify bool) {
	was := d.kicked
	if was == d.availIdx {
		return false
	}
	d.SetAvailIndex(d.availIdx)
	d.kicked = d.availIdx
	shm.Fence()
	if d.cfg.EventIdx {
		return d.AvailEvent()-was < d.availIdx-was // was ≤ event < now
	}
	return d.UsedFlags()&1 == 0
}

// Collect returns the next used chain, if there is one. Its descriptors are free
// again. The error wraps ErrDevice.
func (d *Driver) Collect() (u Used, ok bool, err error) {
	ahead := d.used.Load16(2) - d.usedIdx
	if ahead == 0 {
		return Used{}, false, nil
	}
	if int(ahead) > int(d.kicked-d.usedIdx) {
		return Used{}, false, fmt.Errorf("%w: used index is %d ahead, %d in flight", ErrDevice, ahead, d.kicked-d.usedIdx)
	}
	e := d.used.Bytes()[4+8*(int(d.usedIdx)&(d.cfg.Size-1)):][:8]
	id, written := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint32(e[4:])
	if id >= uint32(d.cfg.Size) || d.count[id] == 0 {
		return Used{}, false, fmt.Errorf("%w: used chain %d is not in flight", ErrDevice, id)
	}
	d.usedIdx++
	d.release(uint16(id))
	return Used{uint16(id), written}, true, nil
}

func (d *Driver) release(head uint16) {
	last := head
	for range d.count[head] - 1 {
		last = d.next[last]
	}
	d.freeN += int(d.count[head])
	d.count[head] = 0
	d.next[last], d.free = d.free, head
}

// EnableInterrupts asks for an interrupt for the next used chain and reports
// whether one came meanwhile: then there may be no interrupt.
func (d *Driver) EnableInterrupts() (more bool) {
	if d.cfg.EventIdx {
		d.setUsedEvent()
	} else {
		d.SetAvailFlags(0)
	}
	shm.Fence()
	return d.used.Load16(2) != d.usedIdx
}

// DisableInterrupts says that interrupts are not needed.
func (d *Driver) DisableInterrupts() {
	if !d.cfg.EventIdx {
		d.SetAvailFlags(1)
	}
}

// SetUsedEvent moves the index for which the driver wants an interrupt.
func (d *Driver) SetUsedEvent(index uint16) { d.avail.Store16(4+2*d.cfg.Size, index) }

func (d *Driver) setUsedEvent() { d.SetUsedEvent(d.usedIdx) }
