package disktest

import (
	"fmt"
	"math/rand/v2"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
)

// Load puts random operations on an engine, several at a time, which overlap as
// chance will have it, and checks what is read against a ledger.
type Load struct {
	Engine disk.Engine
	Ledger *Ledger
	Rand   *rand.Rand
	Depth  int // operations at a time
	Unit   int // sectors; operations are made of whole ones
	Most   int // units of an operation

	// Until is asked all the time, and ends the load at once, whatever is under way.
	// With it, the engine is polled; without, it may sleep.
	Until func() bool

	slots []task
}

// task is an operation of a load.
type task struct {
	io    disk.IO
	mem   []byte
	entry *Entry
	mark  Mark
}

// Run executes n operations.
func (l *Load) Run(n int) error {
	if l.slots == nil {
		l.slots = make([]task, l.Depth)
		for i := range l.slots {
			s := &l.slots[i]
			s.io.Tag = i
			s.mem = make([]byte, l.Most*l.Unit*SectorSize+1)
		}
	}
	started, left := 0, min(n, l.Depth)
	for ; started < left; started++ {
		l.start(&l.slots[started])
	}
	for left > 0 {
		done, _, err := l.Engine.Wait(l.Until == nil)
		if err != nil {
			return err
		}
		if l.Until != nil {
			if l.Until() {
				return nil
			}
			runtime.Gosched()
		}
		for _, io := range done {
			s := &l.slots[io.Tag]
			if err := l.finish(s); err != nil {
				return err
			}
			if started < n {
				l.start(s)
				started++
			} else {
				left--
			}
		}
	}
	return nil
}

func (l *Load) start(s *task) {
	units := l.Ledger.Sectors() / l.Unit
	n := 1 + l.Rand.IntN(min(l.Most, units))
	at := l.Rand.IntN(units-n+1) * l.Unit
	n *= l.Unit
	s.io.Offset, s.io.Length, s.io.Iov = int64(at*SectorSize), int64(n*SectorSize), nil
	s.io.Durable, s.io.Unmap = l.Rand.IntN(3) == 0, l.Rand.IntN(2) == 0
	mem := s.mem[l.Rand.IntN(2):][:n*SectorSize]
	switch chance := l.Rand.IntN(100); {
	case chance < 30:
		s.io.Op, s.io.Iov, s.mark = disk.Read, l.pieces(mem), l.Ledger.Now(at, n)
	case chance < 80:
		s.io.Op, s.io.Iov, s.entry = disk.Write, l.pieces(mem), l.Ledger.Write(at, mem)
	case chance < 90:
		s.io.Op, s.entry = disk.WriteZeroes, l.Ledger.Zero(at, n)
	case chance < 94:
		s.io.Op, s.entry = disk.Discard, l.Ledger.Discard(at, n)
	default:
		s.io.Op, s.mark = disk.Flush, l.Ledger.Now(0, l.Ledger.Sectors())
	}
	l.Engine.Start(&s.io)
}

// pieces lists mem, in one piece or in several odd ones.
func (l *Load) pieces(mem []byte) (vec []unix.Iovec) {
	for len(mem) > 0 {
		n := len(mem)
		if len(vec) < 10 && l.Rand.IntN(2) == 0 {
			n = 1 + l.Rand.IntN(n)
		}
		vec = append(vec, unix.Iovec{Base: &mem[0], Len: uint64(n)})
		mem = mem[n:]
	}
	return vec
}

func (l *Load) finish(s *task) error {
	if s.io.Err != nil {
		return fmt.Errorf("operation %d at %d, %d bytes: %w", s.io.Op, s.io.Offset, s.io.Length, s.io.Err)
	}
	switch s.io.Op {
	case disk.Read:
		at := s.io.Iov[0].Base == &s.mem[0]
		mem := s.mem[1:]
		if at {
			mem = s.mem
		}
		return l.Ledger.Read(s.mark, mem[:s.io.Length])
	case disk.Flush:
		l.Ledger.Flushed(s.mark)
	default:
		l.Ledger.Done(s.entry, s.io.Durable)
	}
	return nil
}
