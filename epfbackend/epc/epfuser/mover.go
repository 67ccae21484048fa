package epfuser

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
	"github.com/vblk-ep/vblk-ep/internal/eventfd"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/internal/uring"
)

// engine executes transfers for a mover, which is its only user.
type engine interface {
	// start begins a transfer. It says no when there is no room until others have
	// been reaped. The segments may be reused after the next submit.
	start(tag int, segments []epfdev.Segment, toHost bool) bool
	submit() error
	// holds says whether the end of a transfer may have to be asked for, by reap: no
	// bell would tell of it. It can be wrong while no transfer ends.
	holds() bool
	// reap calls ended for each transfer that has.
	reap(ended func(tag int, err error)) error
	// copy is for what a transfer cannot do, and waits.
	copy(addr uint64, p []byte, toHost bool) error
	// close waits until none is in flight, telling of each that ends, and closes the
	// engine.
	close(inFlight func() int, ended func(tag int, err error)) error
}

// limits are what one transfer can be.
type limits struct {
	segments int    // most of them
	align    uint64 // of addresses, offsets and lengths in bytes, a power of two
	bytes    int    // most of them
}

// mover is one queue's share of the controller's DMA engine. A Move is one transfer
// if that is possible, otherwise several, one after the other; what is not aligned is
// copied by the processor.
type mover struct {
	engine engine
	limits limits
	base   []byte // the memory that parts are in
	bell   int

	slots   []moveSlot
	free    []int
	waiting []*epc.Move // for a slot
	stuck   []int       // slots that wait for room in the engine
	done    []*epc.Move
	out     []*epc.Move // what Completed returned
	ended   func(tag int, err error)
	busy    func() int
}

// moveSlot is a move in flight.
type moveSlot struct {
	move     *epc.Move
	part     int // the first that has not been transferred, from off on
	off      int
	segments []epfdev.Segment
}

func newMover(e engine, l limits, depth int, memory []byte, bell int) *mover {
	m := &mover{engine: e, limits: l, base: memory, bell: bell}
	m.slots = make([]moveSlot, depth)
	for i := range m.slots {
		m.slots[i].segments = make([]epfdev.Segment, 0, l.segments)
		m.free = append(m.free, depth-1-i)
	}
	m.ended = m.transferEnded
	m.busy = func() int { return len(m.slots) - len(m.free) - len(m.stuck) }
	return m
}

// Start implements epc.Mover.
func (m *mover) Start(v *epc.Move) {
	v.Err = nil
	if len(m.free) == 0 || len(m.waiting) > 0 {
		m.waiting = append(m.waiting, v)
		return
	}
	m.begin(v)
}

func (m *mover) begin(v *epc.Move) {
	i := m.free[len(m.free)-1]
	m.free = m.free[:len(m.free)-1]
	s := &m.slots[i]
	s.move, s.part, s.off = v, 0, 0
	m.advance(i)
}

// advance starts the next transfer of a slot, or ends its move.
func (m *mover) advance(i int) {
	s := &m.slots[i]
	part, off := s.part, s.off
	err := m.collect(s)
	switch {
	case err == nil && len(s.segments) > 0:
		if !m.engine.start(i, s.segments, s.move.Dir == epc.ToHost) {
			s.part, s.off = part, off
			m.stuck = append(m.stuck, i)
		}
		return
	case err != nil:
		s.move.Err = err
	}
	m.done = append(m.done, s.move)
	s.move = nil
	m.free = append(m.free, i)
}

// collect gathers the segments of the next transfer, and copies what comes before it
// and cannot be in one.
func (m *mover) collect(s *moveSlot) error {
	s.segments = s.segments[:0]
	bytes := 0
	for s.part < len(s.move.Parts) && len(s.segments) < m.limits.segments && bytes < m.limits.bytes {
		p := &s.move.Parts[s.part]
		if s.off == len(p.Local) {
			s.part, s.off = s.part+1, 0
			continue
		}
		addr, local := p.Addr+uint64(s.off), p.Local[s.off:]
		at, ok := shm.Offset(m.base, local)
		if !ok {
			return errLocal
		}
		n := min(len(local), m.limits.bytes-bytes)
		aligned := m.aligned(addr, uint64(at), n)
		if aligned == 0 {
			if len(s.segments) > 0 {
				return nil // it has to be transferred first
			}
			n = m.unaligned(addr, uint64(at), n)
			if err := m.engine.copy(addr, local[:n], s.move.Dir == epc.ToHost); err != nil {
				return err
			}
			s.off += n
			continue
		}
		s.segments = append(s.segments, epfdev.Segment{Addr: addr, Offset: uint32(at), Length: uint32(aligned)})
		s.off += aligned
		bytes += aligned
	}
	return nil
}

// errLocal reports a part outside of the memory that the mover was made with.
var errLocal = errors.New("local memory is not the mover's")

// aligned returns how many of n bytes from addr on can be transferred.
func (m *mover) aligned(addr, at uint64, n int) int {
	if (addr|at)&(m.limits.align-1) != 0 {
		return 0
	}
	return n &^ int(m.limits.align-1)
}

// unaligned returns how many of n bytes from addr on have to be copied: all, if the
// two ends are never aligned together.
func (m *mover) unaligned(addr, at uint64, n int) int {
	mask := m.limits.align - 1
	if (addr^at)&mask != 0 {
		return n
	}
	if head := int(-addr & mask); head > 0 {
		return min(n, head)
	}
	return n
}

func (m *mover) transferEnded(i int, err error) {
	s := &m.slots[i]
	if err != nil {
		s.move.Err = err
		s.part = len(s.move.Parts) // the rest is left
	}
	m.advance(i)
}

// Submit implements epc.Mover. It rings for what Completed would find now: moves that
// needed no transfer, and transfers that the kernel would not ring for.
func (m *mover) Submit() (err error) {
	more := len(m.done) > 0
	if m.busy() > 0 {
		err = m.engine.submit()
		more = more || m.engine.holds()
	}
	if more {
		err = errors.Join(err, eventfd.Ring(m.bell))
	}
	return err
}

// Completed implements epc.Mover.
func (m *mover) Completed() []*epc.Move {
	if m.busy() > 0 {
		if err := m.engine.reap(m.ended); err != nil {
			return nil // Submit will say so
		}
	}
	for len(m.stuck) > 0 {
		i := m.stuck[len(m.stuck)-1]
		m.stuck = m.stuck[:len(m.stuck)-1]
		before := len(m.stuck)
		if m.advance(i); len(m.stuck) > before {
			break
		}
	}
	for len(m.waiting) > 0 && len(m.free) > 0 {
		v := m.waiting[0]
		m.waiting = append(m.waiting[:0], m.waiting[1:]...)
		m.begin(v)
	}
	m.done, m.out = m.out[:0], m.done
	_ = m.Submit() // what was begun here; the next one says if that fails
	return m.out
}

// Close implements epc.Mover.
func (m *mover) Close() error {
	m.waiting = nil
	for i := range m.slots {
		if v := m.slots[i].move; v != nil {
			m.slots[i].part = len(v.Parts) // what is in flight is the last of it
		}
	}
	return m.engine.close(m.busy, m.ended)
}

// NewMover implements epc.Moving.
func (s *Slot) NewMover(depth int, memory []byte, bell int) (epc.Mover, error) {
	i, err := s.dev.Info() // DMA is known once the controller is initialized
	if err != nil {
		return nil, err
	}
	l := limits{segments: max(int(i.MaxSegments), 1), align: max(uint64(i.DMAAlign), 1), bytes: epfdev.MaxBytes}
	e, err := newRingEngine(s.dev, s.e.opts.NoDMA, depth, memory, bell)
	if err != nil {
		return nil, err
	}
	return newMover(e, l, depth, memory, bell), nil
}

// kernelRing is what of an io_uring is needed: *uring.Ring.
type kernelRing interface {
	Next() *uring.SQE
	Prepared() int
	Submit() error
	SubmitAndWait(n int) error
	Ready() int
	Due() bool
	Reap(out []uring.CQE) int
	Close() error
}

// ringEngine gives transfers to the kernel through an io_uring of its own.
type ringEngine struct {
	dev    *epfdev.Device
	ring   kernelRing
	buffer uint32
	flags  uint16
	cqes   [32]uring.CQE
}

func newRingEngine(dev *epfdev.Device, byCPU bool, depth int, memory []byte, bell int) (_ *ringEngine, err error) {
	e := &ringEngine{dev: dev}
	if byCPU {
		e.flags = epfdev.ByCPU
	}
	if e.buffer, err = dev.Register(memory); err != nil {
		return nil, fmt.Errorf("%w: raise the limit of locked memory (ulimit -l) if it is that", err)
	}
	ring, err := uring.New(uint32(depth), uint32(2*depth))
	if err == nil {
		if err = ring.RegisterEventfd(bell); err != nil {
			_ = ring.Close()
		}
	}
	if err != nil {
		return nil, errors.Join(err, dev.Unregister(e.buffer))
	}
	e.ring = ring
	return e, nil
}

func (e *ringEngine) start(tag int, segments []epfdev.Segment, toHost bool) bool {
	s := e.ring.Next()
	if s == nil {
		return false
	}
	flags := e.flags
	if toHost {
		flags |= epfdev.ToHost
	}
	number, command := epfdev.Transfer(segments, e.buffer, flags)
	s.Command(uring.FD(e.dev.FD()), number, command, uint64(tag))
	return true
}

func (e *ringEngine) submit() error { return e.ring.Submit() }

// holds implements engine. The kernel rings for the first completion of a row alone, and
// need not hand over the last one while another processor is about to add the next.
func (e *ringEngine) holds() bool { return e.ring.Due() }

func (e *ringEngine) copy(addr uint64, p []byte, toHost bool) error {
	return away(e.dev.Copy(addr, p, toHost))
}

func (e *ringEngine) reap(ended func(tag int, err error)) error {
	if e.ring.Ready() == 0 {
		if !e.ring.Due() && e.ring.Prepared() == 0 {
			return nil
		}
		if err := e.submit(); err != nil {
			return err
		}
	}
	for {
		n := e.ring.Reap(e.cqes[:])
		for _, c := range e.cqes[:n] {
			var err error
			if c.Res < 0 {
				err = away(fmt.Errorf("transfer: %w", unix.Errno(-c.Res)))
			}
			ended(int(c.UserData), err)
		}
		if n < len(e.cqes) {
			return nil
		}
	}
}

func (e *ringEngine) close(inFlight func() int, ended func(tag int, err error)) error {
	var err error
	for err == nil && inFlight() > 0 {
		if err = e.ring.SubmitAndWait(1); err == nil {
			err = e.reap(ended)
		}
	}
	return errors.Join(err, e.ring.Close(), e.dev.Unregister(e.buffer))
}
