package epfbackend

import (
	"slices"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// A request whose memory cannot be lent moves in pieces, several at a time, so that
// the disk works on some while others are on the link:
//
//	read:  disk → piece → host           write: host → piece → disk
//
// Moves complete in any order, and so do the pieces of a request. What holds the
// order that a driver relies on is what is started when:
//
//  1. data, then the status byte. The byte is the last part of a read's last move, if
//     nothing else of the request is in flight by then; otherwise it is written when
//     all that the request had in flight is done.
//  2. The status byte, then the used entry. A request is pushed when the move or the
//     transfer with its status is done.
//  3. The used entry, then the used index (or, packed, the flags of the first
//     descriptor), then the interrupt: Publish writes them by transfers, in this order.
//
// What a completed move or an earlier transfer brought is there before what follows
// (epc.Mover, vring.Memory), so nobody waits for writes to arrive.

// startBounce puts a transfer in line for pieces.
func (w *worker) startBounce(r *request) (virtioblk.Status, bool) {
	if err := w.openPool(); err != nil {
		return w.refuse(r, "data", err), false
	}
	r.left, r.at = r.dataLen, r.io.Offset
	if p := r.first; p != nil && r.io.Op == disk.Write { // it has come with the header
		r.first = nil
		p.io.Offset = r.at
		r.left -= int64(p.n)
		r.at += int64(p.n)
		w.startPiece(p)
	}
	if r.left > 0 {
		w.queueUp(r)
	}
	return 0, true
}

func (w *worker) queueUp(r *request) {
	s := w.pool.shelfFor(r.dataLen)
	s.line = append(s.line, r)
	r.inLine = true
}

// feed gives pieces that are free to those who wait for one.
func (w *worker) feed() {
	for _, s := range []*shelf{&w.pool.small, &w.pool.large} {
		for len(s.line) > 0 && w.proceeds() && w.live() {
			r := s.line[0]
			p := s.take(w.runFor(r, s))
			if p == nil {
				break
			}
			if w.nextPiece(r, p); r.left == 0 || r.opening || r.held == maxHeld {
				w.leaveLine(r)
			}
		}
	}
}

// leaveLine takes r out of its line, if it stands there.
func (w *worker) leaveLine(r *request) {
	if !r.inLine {
		return
	}
	r.inLine = false
	s := w.pool.shelfFor(r.dataLen)
	i := slices.Index(s.line, r)
	s.line = slices.Delete(s.line, i, i+1)
}

// nextPiece sends a piece on its way with the next data of r.
func (w *worker) nextPiece(r *request, p *piece) {
	p.r = r
	r.pieces++
	r.held += p.run
	if r.opening {
		w.openWith(r, p)
		return
	}
	p.n = int(min(r.left, int64(len(p.buf))-r.at%pieceAlign))
	p.move.Parts, r.data = cut(p.move.Parts[:0], r.data, p.buf[:p.n])
	p.io.Offset = r.at
	r.left -= int64(p.n)
	r.at += int64(p.n)
	if r.io.Op == disk.Write {
		p.move.Dir = epc.FromHost
		w.startMove(&p.move)
	} else {
		w.startPiece(p)
	}
}

// startPiece starts the piece's step at the disk.
func (w *worker) startPiece(p *piece) {
	p.iov[0].Base = &p.buf[0]
	p.iov[0].SetLen(p.n)
	p.io.Iov = p.iov[:]
	p.io.Op, p.io.Length, p.io.Durable = p.r.io.Op, int64(p.n), p.r.io.Durable
	w.engine.Start(&p.io)
}

// pieceAtHost takes a piece on after its move.
func (w *worker) pieceAtHost(p *piece) {
	r := p.r
	switch err := p.move.Err; {
	case err != nil:
		w.pieceFailed(p, w.refuse(r, "data", err))
	case r.opening:
		w.opened(r, p)
	case p.move.Dir == epc.ToHost:
		r.answered = p.withStatus
		w.pieceEnded(p)
	case r.failed:
		w.pieceEnded(p)
	default:
		w.startPiece(p)
	}
}

// pieceAtDisk takes a piece on after its step at the disk.
func (w *worker) pieceAtDisk(p *piece) {
	r, err := p.r, p.io.Err
	p.io.Err = nil
	switch {
	case !w.live():
	case err != nil:
		w.pieceFailed(p, w.diskError(r, err))
	case r.failed || p.io.Op == disk.Write:
		w.pieceEnded(p)
	default:
		p.move.Dir = epc.ToHost
		if p.withStatus = r.pieces == 1 && r.left == 0; p.withStatus {
			status := r.slot[slotStatus : slotStatus+virtioblk.StatusLen]
			status[0] = byte(virtioblk.StatusOK)
			p.move.Parts = append(p.move.Parts, epc.Part{Addr: r.status, Local: status})
		}
		w.startMove(&p.move)
	}
}

// pieceFailed ends a piece, and with it the request as soon as nothing of it is in
// flight.
func (w *worker) pieceFailed(p *piece, status virtioblk.Status) {
	r := p.r
	if !r.failed {
		r.failed, r.fate = true, status
	}
	r.left = 0
	w.leaveLine(r)
	w.pieceEnded(p)
}

// pieceEnded gives a piece back, and ends the request if it was the last.
func (w *worker) pieceEnded(p *piece) {
	r := p.r
	w.putBack(p)
	if r.left > 0 && !r.inLine {
		w.queueUp(r)
	}
	if r.left > 0 || r.pieces > 0 {
		return
	}
	if err := w.finish(r, r.fate); err != nil {
		w.fail(err)
	}
}

func (w *worker) putBack(p *piece) {
	p.r.pieces--
	p.r.held -= p.run
	p.r = nil
	p.shelf.giveBack(p.index, p.run)
}

// startMove hands a move to the engine; without one, it is made at once.
func (w *worker) startMove(m *epc.Move) {
	if !w.live() {
		return
	}
	if w.mover == nil {
		m.Err = w.copyParts(m.Dir, m.Parts)
		w.moveEnded(m)
		return
	}
	w.moving++
	w.mover.Start(m)
}

// copyParts is what a move does, made by transfers.
func (w *worker) copyParts(d epc.Direction, parts []epc.Part) (err error) {
	for _, p := range parts {
		if d == epc.FromHost {
			err = w.mem.ReadAt(p.Local, p.Addr)
		} else {
			err = w.mem.WriteAt(p.Local, p.Addr)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// moveEnded takes on what a move was for.
func (w *worker) moveEnded(m *epc.Move) {
	if w.live() && w.again(m.Err) {
		w.startMove(m)
		return
	}
	if !w.live() {
		return // what it brought may be anything, and must not reach the disk
	}
	if m.Tag < len(w.pool.pieces) {
		w.pieceAtHost(&w.pool.pieces[m.Tag])
		return
	}
	w.batchEnded(&w.batches[m.Tag-len(w.pool.pieces)])
}
