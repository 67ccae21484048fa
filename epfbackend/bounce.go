package epfbackend

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// Host memory that cannot be lent is reached through a buffer of ours: a
// request moves through it piece by piece.
const (
	bounceSize  = 256 << 10 // bytes of a buffer, a multiple of every block size
	bounceCount = 4         // buffers of one queue

	// A trap-free function lends no host memory to the disk, for it could not
	// take it back at a reset: everything goes through buffers.
	bounceCountTrapFree = 32
)

// bouncePool holds a worker's buffers. They are made when they are first
// needed, outside the heap so that they are aligned for direct I/O.
type bouncePool struct {
	limit int // buffers it may make
	free  [][]byte
	made  [][]byte
}

// get returns a buffer, nil if all are in use.
func (p *bouncePool) get() ([]byte, error) {
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b, nil
	}
	if len(p.made) == p.limit {
		return nil, nil
	}
	b, err := unix.Mmap(-1, 0, bounceSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("allocate a bounce buffer: %w", err)
	}
	p.made = append(p.made, b)
	return b, nil
}

func (p *bouncePool) put(b []byte) { p.free = append(p.free, b) }

func (p *bouncePool) close() {
	for _, b := range p.made {
		_ = unix.Munmap(b)
	}
	p.free, p.made = nil, nil
}

// startBounce begins a transfer through a buffer, or puts it in line for one.
func (w *worker) startBounce(r *request) (virtioblk.Status, bool) {
	buf, err := w.bounce.get()
	if err != nil {
		return w.refuse(r, "data", err), false
	}
	if buf == nil {
		w.starved = append(w.starved, r)
		return 0, true
	}
	r.buf, r.left = buf, r.dataLen
	return w.nextPiece(r)
}

// feedStarved gives buffers that have become free to those who wait for one.
func (w *worker) feedStarved() error {
	for len(w.starved) > 0 && !w.broken && w.gate.wanted() == running &&
		(len(w.bounce.free) > 0 || len(w.bounce.made) < w.bounce.limit) {
		r := w.starved[0]
		w.starved = slices.Delete(w.starved, 0, 1)
		if status, atDisk := w.startBounce(r); !atDisk {
			if err := w.finish(r, status); err != nil {
				return err
			}
		}
	}
	return nil
}

// nextPiece starts the transfer of what is left, as far as the buffer holds it.
func (w *worker) nextPiece(r *request) (virtioblk.Status, bool) {
	piece := r.buf[:min(r.left, bounceSize)]
	if r.io.Op == disk.Write {
		rest, err := w.gather(piece, r.data)
		if !w.live() {
			return 0, true // it may be anything, and must not reach the disk
		}
		if err != nil {
			return w.refuse(r, "data", err), false
		}
		r.data = rest
	}
	iov := unix.Iovec{Base: &piece[0]}
	iov.SetLen(len(piece))
	r.iov = append(r.iov[:0], iov)
	r.io.Length, r.io.Iov = int64(len(piece)), r.iov
	w.start(r)
	return 0, true
}

// continueBounce goes on when a piece has been transferred.
func (w *worker) continueBounce(r *request) (virtioblk.Status, bool) {
	piece := r.buf[:r.io.Length]
	if r.io.Op == disk.Read {
		rest, err := w.scatter(r.data, piece)
		if err != nil {
			return w.refuse(r, "data", err), false
		}
		r.data = rest
	}
	r.left -= int64(len(piece))
	r.io.Offset += int64(len(piece))
	if r.left == 0 {
		return virtioblk.StatusOK, false
	}
	return w.nextPiece(r)
}
