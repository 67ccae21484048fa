package disk

import (
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/blkio"
	"github.com/vblk-ep/vblk-ep/internal/shm"
)

// job is an operation that is not made of whole blocks, in up to three parts: the
// block it begins in, the whole blocks, and the block it ends in.
type job struct {
	io      *IO     // the operation
	edges   [2]edge // the first block and the last
	middle  IO
	vec     []unix.Iovec // of middle
	pending int          // parts at the disk
	merged  bool         // the edges are being written back
	err     error        // the first
}

// edge is a block of the disk that an operation covers in part.
type edge struct {
	io       IO
	vec      [1]unix.Iovec
	block    []byte // allocated when first needed, outside the heap so that it is aligned
	used     bool
	from, to int64 // the part of the block
	at       int64 // where that part is in the operation
}

func newJob() *job {
	j := new(job)
	for _, io := range []*IO{&j.edges[0].io, &j.edges[1].io, &j.middle} {
		io.job = j
	}
	return j
}

func (j *job) release() {
	for i := range j.edges {
		if e := &j.edges[i]; e.block != nil {
			_ = unix.Munmap(e.block)
			e.block = nil
		}
	}
}

// lay splits io, whose disk has blocks of the given size.
func (j *job) lay(io *IO, size int64) {
	off, end := io.Offset, io.Offset+io.Length
	first, last := off&^(size-1), (end-1)&^(size-1)
	head, tail := &j.edges[0], &j.edges[1]
	head.set(first, off-first, min(end-first, size), size, 0)
	tail.set(last, 0, end-last, size, last-off)
	tail.used = tail.used && last != first
	from, to := off, end
	if head.used {
		from = first + size
	}
	if tail.used {
		to = last
	}
	j.middle.Offset, j.middle.Length = from, max(to-from, 0)
}

func (g *edge) set(block, from, to, size, at int64) {
	g.io.Offset, g.io.Length = block, size
	g.from, g.to, g.at = from, to, at
	g.used = to-from < size
}

// allocate makes room for a block.
func (g *edge) allocate(size int64) error {
	if g.block != nil {
		return nil
	}
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	g.block = b
	g.vec[0] = unix.Iovec{Base: &b[0], Len: uint64(size)}
	g.io.Iov = g.vec[:]
	return nil
}

// begin puts io into a job and claims the blocks that it modifies.
func (e *emulatedEngine) begin(j *job, io *IO) {
	size := e.s.block
	io.job = j
	j.io, j.pending, j.merged, j.err = io, 0, false, nil
	j.lay(io, size)
	if io.Op == Read {
		e.first(j)
		return
	}
	if e.enter(io, io.Offset&^(size-1), (io.Offset+io.Length+size-1)&^(size-1), true) {
		e.first(j)
	}
}

// first starts what can be done without knowing the edges, and reads them. A
// discard leaves them alone.
func (e *emulatedEngine) first(j *job) {
	if j.io.Op != Discard {
		for i := range j.edges {
			if g := &j.edges[i]; g.used && j.err == nil {
				if j.err = g.allocate(e.s.block); j.err == nil {
					e.part(j, &g.io, Read)
				}
			}
		}
	}
	if m := &j.middle; m.Length > 0 && j.err == nil {
		m.Iov, m.Unmap = nil, j.io.Unmap
		if j.io.Op == Read || j.io.Op == Write {
			j.vec = blkio.Cut(j.io.Iov, j.vec, m.Offset-j.io.Offset, m.Length)
			m.Iov = j.vec
		}
		e.part(j, m, j.io.Op)
	}
	if j.pending == 0 {
		e.finish(j)
	}
}

func (e *emulatedEngine) part(j *job, io *IO, op Op) {
	io.Op, io.Durable = op, j.io.Durable && op != Read
	j.pending++
	e.toDisk(io)
}

// advance goes on when a part of a job is done.
func (e *emulatedEngine) advance(j *job, err error) {
	if j.err == nil {
		j.err = err
	}
	if j.pending--; j.pending > 0 {
		return
	}
	if j.err == nil && !j.merged && j.io.Op != Discard {
		j.err = e.merge(j)
	}
	if j.pending == 0 {
		e.finish(j)
	}
}

// merge moves what there is to move between the edges and the operation's memory.
// Edges that were modified are written back.
func (e *emulatedEngine) merge(j *job) error {
	j.merged = true
	e.copying = j
	if shm.Guard(e.copy) != nil {
		return unix.EFAULT // the memory is gone
	}
	if j.io.Op == Read {
		return nil
	}
	for i := range j.edges {
		if g := &j.edges[i]; g.used {
			e.part(j, &g.io, Write)
		}
	}
	return nil
}

// copyEdges touches memory of the guest, and may be cut short by a fault in it.
func (e *emulatedEngine) copyEdges() error {
	j := e.copying
	for i := range j.edges {
		g := &j.edges[i]
		if !g.used {
			continue
		}
		switch part := g.block[g.from:g.to]; j.io.Op {
		case Read:
			blkio.Scatter(j.io.Iov, g.at, part)
		case Write:
			blkio.Gather(part, j.io.Iov, g.at)
		case WriteZeroes:
			clear(part)
		}
	}
	return nil
}

func (e *emulatedEngine) finish(j *job) {
	io := j.io
	io.Err = j.err
	io.job, j.io = nil, nil
	e.free = append(e.free, j)
	e.complete(io)
}
