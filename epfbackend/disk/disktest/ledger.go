package disktest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

// SectorSize is the unit in which a Ledger counts, in bytes.
const SectorSize = 512

// Ledger knows what may stand in each sector of a disk, by what was asked of the
// disk and what it has answered: it is told before an operation is started, and
// after it was seen to be done. Operations may overlap; of those that were under way
// together, any may be the one whose data is left. Methods may be called from any
// goroutine.
type Ledger struct {
	mu      sync.Mutex
	sectors []sector
	last    uint32 // the last id
}

// sector is the history of a sector.
type sector struct {
	ids    []uint32 // of what was written, in the order in which that was begun
	flight int      // of them, not done
	group  int      // index in ids: the first of those that were under way together
	low    int      // index in ids: what is before cannot be read any more
	stable int      // index in ids: what is before cannot be there after a power cut
}

// Contents that are not of a write.
const (
	zeroes   uint32 = 0
	anything        = ^uint32(0)
)

// Entry is an operation that modifies some sectors.
type Entry struct {
	At, N  int // sectors
	id     uint32
	groups []int // of its sectors, when it was begun
}

// Mark is a moment: what could not be read any more by then.
type Mark struct {
	at  int
	low []int
}

// NewLedger returns the ledger of a disk of zeroes.
func NewLedger(sectors int) *Ledger {
	l := &Ledger{sectors: make([]sector, sectors)}
	for i := range l.sectors {
		l.sectors[i].ids = []uint32{zeroes}
	}
	return l
}

// Write is told before a write is started, whose data is in p afterwards.
func (l *Ledger) Write(at int, p []byte) *Entry {
	l.mu.Lock()
	l.last++
	id := l.last
	l.mu.Unlock()
	e := l.begin(at, len(p)/SectorSize, id)
	for i := range e.N {
		fill(p[i*SectorSize:][:SectorSize], at+i, id)
	}
	return e
}

// Zero is told before zeroes are written.
func (l *Ledger) Zero(at, n int) *Entry { return l.begin(at, n, zeroes) }

// Discard is told before a discard is started.
func (l *Ledger) Discard(at, n int) *Entry { return l.begin(at, n, anything) }

func (l *Ledger) begin(at, n int, id uint32) *Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &Entry{At: at, N: n, id: id}
	for i := range n {
		s := &l.sectors[at+i]
		if s.flight == 0 {
			s.group = len(s.ids)
		}
		s.flight++
		s.ids = append(s.ids, id)
		e.groups = append(e.groups, s.group)
	}
	return e
}

// Done is told that an operation is done, and whether it has to be stable by then.
func (l *Ledger) Done(e *Entry, stable bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range e.N {
		s := &l.sectors[e.At+i]
		s.flight--
		s.low = max(s.low, e.groups[i])
		if stable {
			s.stable = max(s.stable, e.groups[i])
		}
	}
}

// Abandoned is told that nobody will learn whether an operation was done, and that
// it will not go on: a reset has ended it.
func (l *Ledger) Abandoned(e *Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range e.N {
		l.sectors[e.At+i].flight--
	}
}

// Now is told before n sectors are read, or before all are flushed.
func (l *Ledger) Now(at, n int) Mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := Mark{at: at}
	for _, s := range l.sectors[at : at+n] {
		m.low = append(m.low, s.low)
	}
	return m
}

// Sectors returns how many there are.
func (l *Ledger) Sectors() int { return len(l.sectors) }

// Flushed is told that a flush is done that was started at m.
func (l *Ledger) Flushed(m Mark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, low := range m.low {
		s := &l.sectors[m.at+i]
		s.stable = max(s.stable, low)
	}
}

// Read checks what a read returned that was started at m.
func (l *Ledger) Read(m Mark, p []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, low := range m.low {
		if err := l.check(m.at+i, p[i*SectorSize:][:SectorSize], low); err != nil {
			return fmt.Errorf("read: %w", err)
		}
	}
	return nil
}

// Restart checks what a disk holds after a power cut, and goes on from there:
// nothing is under way any more, and what is there is stable.
func (l *Ledger) Restart(image []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.sectors {
		s, p := &l.sectors[i], image[i*SectorSize:][:SectorSize]
		if err := l.check(i, p, s.stable); err != nil {
			return fmt.Errorf("after the power cut: %w", err)
		}
		id := anything
		if found, ok := identify(i, p); ok {
			id = found
		}
		*s = sector{ids: []uint32{id}}
	}
	return nil
}

// check says what is wrong if p cannot be in sector i, of which nothing before low
// can be left.
func (l *Ledger) check(i int, p []byte, low int) error {
	s := &l.sectors[i]
	if slices.Contains(s.ids[low:], anything) {
		return nil
	}
	id, ok := identify(i, p)
	switch {
	case !ok:
		return fmt.Errorf("sector %d holds what was never written there, or parts of several writes: % x ... % x",
			i, p[:12], p[SectorSize-8:])
	case !slices.Contains(s.ids[low:], id):
		return fmt.Errorf("sector %d holds write %d, and may hold one of %v (of %v)", i, id, s.ids[low:], s.ids)
	}
	return nil
}

// fill makes the content of a sector tell whose it is, to its last byte.
func fill(p []byte, at int, id uint32) {
	if id == zeroes {
		clear(p)
		return
	}
	for i := 0; i < SectorSize; i += 16 {
		binary.LittleEndian.PutUint32(p[i:], id)
		binary.LittleEndian.PutUint32(p[i+4:], uint32(at))
		binary.LittleEndian.PutUint64(p[i+8:], (uint64(id)<<32|uint64(at))*0x9e3779b97f4a7c15+uint64(i))
	}
}

// identify is the inverse of fill.
func identify(at int, p []byte) (id uint32, ok bool) {
	var want [SectorSize]byte
	id = binary.LittleEndian.Uint32(p)
	fill(want[:], at, id)
	return id, bytes.Equal(want[:], p)
}
