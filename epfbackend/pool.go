package epfbackend

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/vring"
)

// Host memory that cannot be lent is reached through buffers of ours. A request of
// no more than a page takes a small one, others go through large ones, several at a
// time: enough for a disk and a link of several GiB/s with a tenth of a millisecond
// between them.
const (
	smallSize  = 4096
	smallCount = 256 // at most
	largeSize  = 128 << 10
	largeCount = 32
	maxPieces  = 8    // of one request at a time, so that others get some, too
	pieceAlign = 4096 // of what is read or written; a multiple of every block size

	// A request's header, status and indirect table, in memory that a mover can reach.
	// Longer tables are read by transfers, which is little of what such requests take.
	slotLen    = 256
	slotStatus = 16
	slotTable  = 32
)

// piece is a part of a request on its way between host and disk, and the buffer it
// goes through.
type piece struct {
	r     *request
	shelf *shelf
	buf   []byte
	n     int     // bytes of data in it
	io    disk.IO // io.Tag is beyond those of the requests
	iov   [1]unix.Iovec
	move  epc.Move // move.Tag is the piece's index

	withStatus bool // the move ends with the status byte
}

// shelf holds the pieces of one size that are free, or those who wait for one.
type shelf struct {
	size int
	free []*piece
	line []*request
}

// pool is a worker's memory for what cannot be lent: one mapping, outside the heap,
// because it is aligned for direct I/O and registered with DMA engines.
type pool struct {
	memory []byte
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
	n := (slots + small*smallSize + largeCount*largeSize + page - 1) &^ (page - 1)
	memory, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("allocate bounce buffers: %w", err)
	}
	p.memory = memory
	p.pieces = make([]piece, small+largeCount)
	p.small.size, p.large.size = smallSize, largeSize
	p.small.line = make([]*request, 0, len(w.all))
	p.large.line = make([]*request, 0, len(w.all))
	// Large ones come first, so that all start at pages of the machine.
	at := slots
	for i := range p.pieces {
		s := &p.large
		if i >= largeCount {
			s = &p.small
		}
		c := &p.pieces[i]
		c.shelf, c.buf = s, memory[at:at+s.size]
		c.io.Tag, c.move.Tag = len(w.all)+i, i
		// In a driver's pages, with header and status; more makes it grow.
		c.move.Parts = make([]epc.Part, 0, s.size/pieceAlign+3)
		at += s.size
		s.free = append(s.free, c)
	}
	w.pinMemory()
	return nil
}

func (p *pool) close() {
	if p.memory != nil {
		_ = unix.Munmap(p.memory)
		p.memory, p.pieces = nil, nil
	}
}

// slot returns the memory for header, status and table of request i.
func (p *pool) slot(i int) []byte { return p.memory[i*slotLen : (i+1)*slotLen] }

// shelfFor returns where a request of n bytes finds its pieces.
func (p *pool) shelfFor(n int64) *shelf {
	if n <= smallSize {
		return &p.small
	}
	return &p.large
}

func (s *shelf) take() *piece {
	p := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return p
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
