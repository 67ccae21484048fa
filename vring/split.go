package vring

import (
	"encoding/binary"
	"fmt"
)

// Layout of the available ring (§2.7.6) and of the used ring (§2.7.8), in bytes.
// used_event comes after the last available entry, avail_event after the last
// used one.
const (
	availFlags     = 0x00 // u16
	availIndex     = 0x02 // u16
	availRing      = 0x04
	availEntrySize = 2
	usedFlags      = 0x00 // u16, one aligned word with the index
	usedRing       = 0x04
	usedEntrySize  = 8 // u32 head, u32 length
)

const (
	noInterrupt = 1 << 0 // in the flags of the available ring
	noNotify    = 1 << 0 // in the flags of the used ring
)

// Split is the device side of a split virtqueue (§2.7). It implements Queue.
//
// Indices run freely and wrap at 16 bits; a slot is an index modulo the size. In
// the order in which chains pass them:
//
//	published ≤ pushed ≤ next ≤ avail ≤ published + size
//
// From avail on the entries of the available ring have not been read; next is
// the first chain that was not fetched; pushed and published are the used index
// as the batch and as the driver know it.
//
// The device owns the used ring and never reads it: the batch is kept here, is
// written when it is published, and so survives host memory that comes and goes.
type Split struct {
	cfg    Config
	hints  Prefetcher // nil: none
	desc   table
	avail  area
	used   area
	tables tables

	nextIndex, availIndex       uint16
	pushedIndex, publishedIndex uint16

	heads      []byte // entries of the available ring, copied once each
	batch      []byte // entries of the used ring
	suppressed bool   // the driver was told not to notify, by flag
	event      uint16 // avail_event
	undecided  bool   // published, but what the driver wants could not be read
	journal    *journal
	inherited  []uint16 // entries of the journal
	health
}

var _ Queue = (*Split)(nil)

// NewSplit returns the split virtqueue at the given place in mem. Errors are
// ErrSize, ErrRingAddress, ErrJournal and those of Memory.
func NewSplit(mem Memory, cfg Config) (*Split, error) {
	n := cfg.Size
	if n < 1 || n > MaxSize || n&(n-1) != 0 {
		return nil, fmt.Errorf("%d descriptors: %w", n, ErrSize)
	}
	if cfg.MaxChain <= 0 {
		cfg.MaxChain = n
	}
	event := 0
	if cfg.EventIdx {
		event = 2
	}
	hints, _ := mem.(Prefetcher)
	q := &Split{
		cfg: cfg, hints: hints,
		desc: table{
			size: n,
			area: area{mem: mem, name: "descriptor table", addr: cfg.Desc, len: n * descSize, align: 16, access: Read},
		},
		avail: area{
			mem: mem, name: "available ring", addr: cfg.Driver,
			len: availRing + n*availEntrySize + event, align: 2, access: Read,
		},
		used: area{
			mem: mem, name: "used ring", addr: cfg.Device,
			len: usedRing + n*usedEntrySize + event, align: 4, access: Write,
		},
		tables:    tables{mem: mem, allowed: cfg.Indirect, max: cfg.MaxChain, defers: cfg.Deferred},
		nextIndex: cfg.Start, availIndex: cfg.Start,
		pushedIndex: cfg.Start, publishedIndex: cfg.Start, event: cfg.Start,
		heads: make([]byte, n*availEntrySize),
		batch: make([]byte, n*usedEntrySize),
	}
	for _, a := range []*area{&q.desc.area, &q.avail, &q.used} {
		if err := a.check(); err != nil {
			return nil, err
		}
	}
	if err := q.Resolve(); err != nil {
		return nil, err
	}
	var err error
	if q.journal, err = newJournal(cfg.Journal, n); err != nil {
		return nil, err
	}
	if cfg.Resume {
		return q, q.resume()
	}
	q.journal.clear(cfg.Start)
	return q, nil
}

// resume goes on from what the journal tells.
func (q *Split) resume() error {
	in, err := q.journal.recover(false, func(from, to uint16) (bool, error) {
		index, err := q.used.load16(usedFlags + 2)
		if err == nil && index != from && index != to {
			err = fmt.Errorf("used index %d, not %d or %d: %w", index, from, to, ErrJournal)
		}
		return index == to, err
	})
	if err != nil {
		return err
	}
	if n := int(in.next - in.used); n != in.slots || n > q.cfg.Size {
		return fmt.Errorf("%d chains in flight from %d to %d: %w", in.slots, in.used, in.next, ErrJournal)
	}
	q.nextIndex, q.availIndex, q.event = in.next, in.next, in.next
	q.pushedIndex, q.publishedIndex = in.used, in.used
	q.inherited = in.entries
	q.suppressed = !q.cfg.EventIdx // or so it may be, and the driver is asked again
	q.journal.resumed(in)
	return nil
}

// Resolve implements Queue.
func (q *Split) Resolve() error {
	return q.resolve(q.desc.resolve, q.avail.resolve, q.used.resolve)
}

// InFlight implements Queue.
func (q *Split) InFlight() int { return int(q.nextIndex-q.pushedIndex) - len(q.inherited) }

// Inherited implements Queue.
func (q *Split) Inherited() int { return len(q.inherited) }

// Next implements Queue.
func (q *Split) Next(c *Chain) (ok bool, err error) {
	if err := q.unable(); err != nil {
		return false, err
	}
	if len(q.inherited) > 0 {
		return q.inherit(c)
	}
	if q.nextIndex == q.availIndex {
		if more, err := q.refresh(); !more {
			return false, err
		}
	}
	slot := int(q.nextIndex) & (q.cfg.Size - 1)
	head := binary.LittleEndian.Uint16(q.heads[slot*availEntrySize:])
	q.ahead()
	if err := q.collect(c, head); err != nil {
		return false, err
	}
	q.nextIndex++
	q.journal.fetchHead(c, q.nextIndex)
	return c.fetched()
}

// collect makes c the chain at a head.
func (q *Split) collect(c *Chain, head uint16) error {
	c.reset(head)
	err := q.walk(c)
	if err != nil {
		c.reset(head)
		c.split()
		err = q.fail(fmt.Errorf("chain %d: %w", head, err))
	}
	return err
}

// inherit is Next for a chain that another queue had in flight.
func (q *Split) inherit(c *Chain) (ok bool, err error) {
	e := q.inherited[0]
	if err := q.collect(c, decodePacked(q.journal.desc(e)).id); err != nil {
		return false, err
	}
	c.entry, q.inherited = e, q.inherited[1:]
	return c.fetched()
}

// Complete implements Queue.
func (q *Split) Complete(c *Chain, table []byte) (ok bool, err error) {
	c.Table = Segment{}
	if err := q.walkTable(c, table); err != nil {
		return false, q.fail(fmt.Errorf("chain %d: %w", c.Head, err))
	}
	return c.finished()
}

// Known implements Queue.
func (q *Split) Known() bool { return q.known() }

func (q *Split) known() bool { return q.nextIndex != q.availIndex || len(q.inherited) > 0 }

// Available implements Queue.
func (q *Split) Available() (more bool, err error) {
	if err := q.unable(); err != nil {
		return false, err
	}
	if q.known() {
		return true, nil
	}
	return q.refresh()
}

// refresh reads the available index, and then the entries up to it. It reports
// whether a chain can be fetched.
func (q *Split) refresh() (more bool, err error) {
	index, err := q.avail.load16(availIndex)
	if err != nil {
		return false, err
	}
	fresh := int(index - q.availIndex)
	if fresh == 0 {
		return q.known(), nil
	}
	if outstanding := int(q.availIndex - q.publishedIndex); fresh > q.cfg.Size-outstanding {
		return false, q.fail(fmt.Errorf("%w: %d after %d with %d in use",
			ErrAvailIndex, index, q.availIndex, outstanding))
	}
	err = span(q.cfg.Size, q.availIndex, fresh, func(slot, n int) error {
		off := slot * availEntrySize
		return q.avail.read(q.heads[off:off+n*availEntrySize], availRing+off)
	})
	if err != nil {
		return false, err
	}
	q.desc.forget()
	q.availIndex = index
	return true, nil
}

// walk collects the chain that starts at c.Head in the descriptor table. It may
// end in an indirect table (§2.7.5.3.2).
func (q *Split) walk(c *Chain) error {
	size := q.cfg.Size
	i := c.Head
	if int(i) >= size {
		return ErrHead
	}
	for n := 1; ; n++ {
		d, err := q.desc.get(i)
		if err != nil {
			return err
		}
		if d.flags&flagIndirect != 0 {
			return q.walkIndirect(c, d)
		}
		if err := c.add(d, q.cfg.MaxChain); err != nil {
			return err
		}
		if d.flags&flagNext == 0 {
			return nil
		}
		if n == size {
			return ErrLoop
		}
		if i = d.next; int(i) >= size {
			return fmt.Errorf("%w: %d", ErrNext, i)
		}
	}
}

// walkIndirect collects the rest of a chain from the table that d refers to; it
// starts with the table's first descriptor. Whether d itself is writable does
// not matter (§2.7.5.3.2).
func (q *Split) walkIndirect(c *Chain, d desc) error {
	b, err := q.tables.get(c, d)
	if err != nil || c.Table.Len > 0 {
		return err
	}
	return q.walkTable(c, b)
}

// walkTable is walkIndirect once the table is there.
func (q *Split) walkTable(c *Chain, b []byte) error {
	size := len(b) / descSize
	for i, n := 0, 1; ; n++ {
		e := decodeDesc(b[i*descSize:])
		if e.flags&flagIndirect != 0 {
			return ErrIndirectNested
		}
		if err := c.add(e, q.cfg.MaxChain); err != nil {
			return err
		}
		if e.flags&flagNext == 0 {
			return nil
		}
		if n == size {
			return fmt.Errorf("indirect table: %w", ErrLoop)
		}
		if i = int(e.next); i >= size {
			return fmt.Errorf("indirect table: %w: %d of %d", ErrNext, i, size)
		}
	}
}
