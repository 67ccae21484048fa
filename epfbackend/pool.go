package epfbackend

import (
	"fmt"
	"math/bits"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/vring"
)

// Host memory that cannot be lent is reached through buffers of ours. A request of
// no more than a page takes a small one, others go through large ones, which make one
// longer buffer where they lie side by side: enough for a disk and a link of several
// GiB/s with a tenth of a millisecond between them.
const (
	smallSize  = 4096
	smallCount = 256 // at most
	largeSize  = 128 << 10
	largeCount = 32
	maxRun     = 4    // large buffers of a piece
	maxHeld    = 8    // buffers of one request at a time, so that others get some, too
	enough     = 3    // requests that keep disk and link busy
	pieceAlign = 4096 // of what is read or written; a multiple of every block size
	largePage  = 2 << 20

	// A request's header, status and indirect table, in memory that a mover can reach.
	// Longer tables are read by transfers, which is little of what such requests take.
	slotLen    = 256
	slotStatus = 16
	slotTable  = 32
)

// piece is a part of a request on its way between host and disk, and the buffers it
// goes through: its own, and while it is taken some of those behind.
type piece struct {
	r     *request
	shelf *shelf
	index int // in the shelf
	run   int // buffers that it has
	buf   []byte
	n     int     // bytes of data in it
	io    disk.IO // io.Tag is beyond those of the requests
	iov   [1]unix.Iovec
	move  epc.Move // move.Tag is the piece's index

	withStatus bool // the move ends with the status byte
}

// shelf holds the buffers of one size that are free, or those who wait for one.
type shelf struct {
	size   int
	memory []byte // all buffers
	pieces []piece
	free   []uint64 // a bit a buffer
	line   []*request
}

func newShelf(size int, memory []byte, pieces []piece, waiting int) shelf {
	s := shelf{size: size, memory: memory, pieces: pieces, line: make([]*request, 0, waiting)}
	s.free = make([]uint64, (len(pieces)+63)/64)
	for i := range pieces {
		s.giveBack(i, 1)
	}
	return s
}

// take returns a piece with as many buffers as wanted, or as there are in a row; nil if
// there is none.
func (s *shelf) take(want int) *piece {
	for ; want > 0; want-- {
		for w, free := range s.free {
			rows := free
			for n := 1; n < want; n++ {
				rows &= free >> n
			}
			if rows == 0 {
				continue
			}
			bit := bits.TrailingZeros64(rows)
			s.free[w] &^= (1<<want - 1) << bit
			p := &s.pieces[w*64+bit]
			p.run, p.buf = want, s.memory[p.index*s.size:(p.index+want)*s.size]
			return p
		}
	}
	return nil
}

// giveBack makes n buffers free that take has given away together.
func (s *shelf) giveBack(index, n int) { s.free[index/64] |= (1<<n - 1) << (index % 64) }

// pool is a worker's memory for what cannot be lent: one mapping, outside the heap,
// because it is aligned for direct I/O and registered with DMA engines.
type pool struct {
	memory []byte
	slots  []byte // by request
	pieces []piece
	small  shelf
	large  shelf
}

// openPool makes the pool, unless it is there.
func (w *worker) openPool() error {
	p := &w.pool
	if p.memory != nil {
		return nil
	}
	page := os.Getpagesize()
	slots := (len(w.all)*slotLen + page - 1) &^ (page - 1)
	small := min(len(w.all), smallCount)
	n := (slots + small*smallSize + largeCount*largeSize + largePage - 1) &^ (largePage - 1)
	memory, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("allocate bounce buffers: %w", err)
	}
	// Few large pages are few pieces for disk and DMA engine, and what is a multiple of
	// them long begins with one. Where there are none, it works as well.
	_ = unix.Madvise(memory, unix.MADV_HUGEPAGE)
	p.memory = memory
	p.pieces = make([]piece, largeCount+small)
	// Large ones come first, so that all start at pages of the machine.
	large := largeCount * largeSize
	p.large = newShelf(largeSize, memory[:large], p.pieces[:largeCount], len(w.all))
	p.slots = memory[large : large+slots]
	p.small = newShelf(smallSize, memory[large+slots:][:small*smallSize], p.pieces[largeCount:], len(w.all))
	for _, s := range []*shelf{&p.large, &p.small} {
		for i := range s.pieces {
			c := &s.pieces[i]
			c.shelf, c.index = s, i
			// In a driver's pages, with header and status; more makes it grow.
			c.move.Parts = make([]epc.Part, 0, s.size/pieceAlign+3)
		}
	}
	for i := range p.pieces {
		p.pieces[i].io.Tag, p.pieces[i].move.Tag = len(w.all)+i, i
	}
	w.pinMemory()
	return nil
}

func (p *pool) close() {
	if p.memory != nil {
		_ = unix.Munmap(p.memory)
		*p = pool{}
	}
}

// slot returns the memory for header, status and table of request i.
func (p *pool) slot(i int) []byte { return p.slots[i*slotLen : (i+1)*slotLen] }

// shelfFor returns where a request of n bytes finds its pieces.
func (p *pool) shelfFor(n int64) *shelf {
	if n <= smallSize {
		return &p.small
	}
	return &p.large
}

// runFor returns how many buffers the next piece of r is to have. Each piece costs an
// operation of the disk, a transfer and an interrupt. So a request goes in one piece
// where there are enough others to keep disk and link busy at the same time, and in
// several where it has to do that alone.
func (w *worker) runFor(r *request, s *shelf) int {
	if w.ring.InFlight() < enough {
		return 1
	}
	buffers := (r.left + int64(s.size) - 1) / int64(s.size)
	return int(min(buffers, maxRun, int64(maxHeld-r.held)))
}

// cut appends to parts the first len(local) bytes of segments, which it edits, and
// returns what is left of these. There are as many bytes.
func cut(parts []epc.Part, segments []vring.Segment, local []byte) ([]epc.Part, []vring.Segment) {
	for len(local) > 0 {
		s := &segments[0]
		n := min(len(local), int(s.Len))
		parts = append(parts, epc.Part{Addr: s.Addr, Local: local[:n]})
		local = local[n:]
		s.Addr, s.Len = s.Addr+uint64(n), s.Len-uint32(n)
		if s.Len == 0 {
			segments = segments[1:]
		}
	}
	return parts, segments
}
