package vring

import (
	"errors"
	"fmt"
)

// Packed is the device side of a packed virtqueue (§2.8). It implements Queue.
//
// There is one ring. The driver writes available descriptors into it in order,
// and the device overwrites them in the same order with used ones, one for each
// chain, as chains complete; it then skips as many descriptors as that chain
// had. Positions go round as laps has it, and pass each descriptor in the order
//
//	published ≤ pushed ≤ next ≤ published + size
//
// From next on descriptors were not fetched; pushed and published are where the
// next used descriptor goes, as the batch and as the driver know it. Between
// them lies the batch, in the ring's local copy, and so survives host memory
// that comes and goes. What the device overwrites it has fetched before, for
// next stays ahead whatever the driver says.
type Packed struct {
	cfg    Config
	hints  Prefetcher // nil: none
	ring   packedRing
	driver area // its event suppression structure
	device area
	tables tables

	next, pushed, published int
	inFlight                int

	steps     []uint16 // per slot with a used descriptor of the batch: how many it stands for
	first     uint16   // the flags of the first used descriptor of the batch
	told      uint32   // what the driver was told about notifications
	undecided bool     // published, but what the driver wants could not be read
	journal   *journal
	inherited []uint16 // entries of the journal
	health
}

var _ Queue = (*Packed)(nil)

// ErrStart reports a Config.Start that is no descriptor of the ring.
var ErrStart = errors.New("start of packed virtqueue is outside of the ring")

// NewPacked returns the packed virtqueue at the given place in mem. Errors are
// ErrSize, ErrStart, ErrRingAddress, ErrJournal and those of Memory.
func NewPacked(mem Memory, cfg Config) (*Packed, error) {
	n := cfg.Size
	if n < 1 || n > MaxSize {
		return nil, fmt.Errorf("%d descriptors: %w", n, ErrSize)
	}
	if slot := int(cfg.Start &^ wrapBit); slot >= n {
		return nil, fmt.Errorf("%w: descriptor %d of %d", ErrStart, slot, n)
	}
	lap := laps{n}
	start := lap.decode(cfg.Start ^ wrapBit)
	if cfg.MaxChain <= 0 {
		cfg.MaxChain = n
	}
	hints, _ := mem.(Prefetcher)
	q := &Packed{
		cfg: cfg, hints: hints,
		ring: packedRing{
			laps:  lap,
			local: make([]byte, n*descSize),
			area: area{
				mem: mem, name: "descriptor ring", addr: cfg.Desc,
				len: n * descSize, align: 16, access: Read | Write,
			},
		},
		driver: area{
			mem: mem, name: "driver event suppression", addr: cfg.Driver,
			len: eventSize, align: 4, access: Read,
		},
		device: area{
			mem: mem, name: "device event suppression", addr: cfg.Device,
			len: eventSize, align: 4, access: Write,
		},
		tables: tables{mem: mem, allowed: cfg.Indirect, max: cfg.MaxChain, defers: cfg.Deferred},
		next:   start, pushed: start, published: start,
		steps: make([]uint16, n),
		told:  toldNothing,
	}
	for _, a := range []*area{&q.ring.area, &q.driver, &q.device} {
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
func (q *Packed) resume() error {
	in, err := q.journal.recover(true, q.wasPublished)
	if err != nil {
		return err
	}
	if q.next, err = q.position(in.next); err != nil {
		return err
	}
	if q.published, err = q.position(in.used); err != nil {
		return err
	}
	if n := q.ring.between(q.published, q.next); n != in.slots || n > q.ring.size {
		return fmt.Errorf("%d descriptors in flight from %#x to %#x: %w", in.slots, in.used, in.next, ErrJournal)
	}
	for at := q.published; at != q.next; at = q.ring.after(at, 1) {
		q.ring.forget(at)
	}
	q.pushed = q.published
	q.inherited = in.entries
	q.journal.resumed(in)
	return nil
}

// wasPublished says whether a batch, from one position up to another, is in host memory.
//
// Where it begins the driver has made a descriptor available in this lap, whose USED is
// not the wrap counter. Once the batch is there it is, and stays so when the driver comes
// to that place in the next lap. As long as it is not, the driver does not look at what
// comes after it, where used descriptors may stand already. They are taken back, because
// the next batch may be a shorter one.
func (q *Packed) wasPublished(from, to uint16) (bool, error) {
	at, err := q.position(from)
	if err != nil {
		return false, err
	}
	end, err := q.position(to)
	if err != nil {
		return false, err
	}
	flags, err := q.ring.load16(q.ring.slot(at)*descSize + packedFlags)
	if err != nil || (flags^q.ring.used(at))&flagUsed == 0 {
		return true, err
	}
	for at = q.ring.after(at, 1); at != end; at = q.ring.after(at, 1) {
		if err := q.ring.store16(q.ring.slot(at)*descSize+packedFlags, q.ring.fresh(at)); err != nil {
			return false, err
		}
	}
	return false, nil
}

// position decodes what encoded returned.
func (q *Packed) position(v uint16) (int, error) {
	if int(v&^wrapBit) >= q.ring.size {
		return 0, fmt.Errorf("position %#x: %w", v, ErrJournal)
	}
	return q.ring.decode(v ^ wrapBit), nil
}

// encoded returns a position as Config.Start is.
func (q *Packed) encoded(p int) uint16 { return q.ring.encode(p) ^ wrapBit }

// Resolve implements Queue.
func (q *Packed) Resolve() error {
	return q.resolve(q.ring.resolve, q.driver.resolve, q.device.resolve)
}

// InFlight implements Queue.
func (q *Packed) InFlight() int { return q.inFlight }

// Inherited implements Queue.
func (q *Packed) Inherited() int { return len(q.inherited) }

// Next implements Queue.
func (q *Packed) Next(c *Chain) (ok bool, err error) {
	if err := q.unable(); err != nil {
		return false, err
	}
	if len(q.inherited) > 0 {
		return q.inherit(c)
	}
	if more, err := q.more(); !more {
		return false, err
	}
	q.ahead()
	c.reset(0)
	if err := q.walk(c); err != nil {
		c.reset(0)
		c.split()
		return false, q.fail(fmt.Errorf("chain at descriptor %d: %w", q.ring.slot(q.next), err))
	}
	at := q.next
	q.ring.fetched(c.slots)
	q.next = q.ring.after(q.next, c.slots)
	q.inFlight++
	q.journal.fetchDescs(c, &q.ring, at, q.encoded(q.next))
	return c.fetched()
}

// inherit is Next for a chain that another queue had in flight.
func (q *Packed) inherit(c *Chain) (ok bool, err error) {
	e := q.inherited[0]
	c.reset(0)
	if err := q.walkEntries(c, e); err != nil {
		c.reset(0)
		c.split()
		return false, q.fail(fmt.Errorf("chain at entry %d: %w", e, err))
	}
	c.entry, q.inherited = e, q.inherited[1:]
	q.inFlight++
	return c.fetched()
}

// walkEntries is walk for a chain that stands in the journal, whose descriptors are as
// many as was checked.
func (q *Packed) walkEntries(c *Chain, e uint16) error {
	for {
		d := decodePacked(q.journal.desc(e))
		c.Head = d.id
		c.slots++
		if d.flags&flagIndirect != 0 {
			if c.slots > 1 {
				return ErrIndirectNext
			}
			return q.walkIndirect(c, d.desc)
		}
		if err := c.add(d.desc, q.cfg.MaxChain); err != nil {
			return err
		}
		if d.flags&flagNext == 0 {
			return nil
		}
		e = q.journal.link[e]
	}
}

// Complete implements Queue.
func (q *Packed) Complete(c *Chain, table []byte) (ok bool, err error) {
	c.Table = Segment{}
	if err := q.walkTable(c, table); err != nil {
		return false, q.fail(fmt.Errorf("chain %d: %w", c.Head, err))
	}
	return c.finished()
}

// Known implements Queue.
func (q *Packed) Known() bool {
	return len(q.inherited) > 0 || q.ring.seen > 0 || q.ring.countAvailable(q.next) > 0
}

// Available implements Queue.
func (q *Packed) Available() (more bool, err error) {
	if err := q.unable(); err != nil {
		return false, err
	}
	return q.more()
}

// room returns how many descriptors the driver may have made available and the
// device did not fetch. Those that it used and did not publish are not free: the
// driver cannot know.
func (q *Packed) room() int { return q.ring.size - q.ring.between(q.published, q.next) }

// more reports whether a chain can be fetched.
func (q *Packed) more() (bool, error) {
	if len(q.inherited) > 0 {
		return true, nil
	}
	ok, err := q.ring.available(q.next)
	if ok && q.room() == 0 {
		return false, q.fail(fmt.Errorf("%w: descriptor %d is in flight", ErrOverrun, q.ring.slot(q.next)))
	}
	return ok, err
}

// walk collects the chain at the next position: descriptors that follow each
// other in the ring (§2.8.6), or a single one that refers to a table (§2.8.7).
// The buffer ID is in the last. All of them have to be available, since the
// driver marks the first one last.
func (q *Packed) walk(c *Chain) error {
	room := q.room()
	for i := range room {
		d, err := q.ring.get(q.next, i, room)
		if err != nil {
			return err
		}
		if !q.ring.laps.available(d.flags, q.ring.after(q.next, i)) {
			return ErrUnavailable
		}
		c.Head, c.slots = d.id, i+1
		if d.flags&flagIndirect != 0 {
			if i > 0 {
				return ErrIndirectNext
			}
			return q.walkIndirect(c, d.desc)
		}
		if err := c.add(d.desc, q.cfg.MaxChain); err != nil {
			return err
		}
		if d.flags&flagNext == 0 {
			return nil
		}
	}
	if room == q.ring.size {
		return ErrTooLong
	}
	return ErrOverrun
}

// walkIndirect collects the descriptors of a table. They have no order but their
// own, and of their flags the device looks at WRITE alone (§2.8.7).
func (q *Packed) walkIndirect(c *Chain, d desc) error {
	b, err := q.tables.get(c, d)
	if err != nil || c.Table.Len > 0 {
		return err
	}
	return q.walkTable(c, b)
}

// walkTable is walkIndirect once the table is there.
func (q *Packed) walkTable(c *Chain, b []byte) error {
	for ; len(b) > 0; b = b[descSize:] {
		e := decodePacked(b)
		if err := c.add(e.desc, q.cfg.MaxChain); err != nil {
			return err
		}
	}
	return nil
}
