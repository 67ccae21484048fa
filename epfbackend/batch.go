package epfbackend

import (
	"fmt"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring"
)

// What is small is moved for several requests at once where host memory is reached by
// DMA: indirect tables, headers that no data comes along with, and the status bytes of
// those that could not send theirs along with data. As much goes into one batch as a turn
// has brought, so that batches grow with the load, and nothing waits for others.
//
// A batch that fails does not say for whom, so its parts are then transferred again,
// one by one.
const (
	batchCount = 16
	batchSize  = 64 // requests
)

type batch struct {
	what small
	move epc.Move // move.Tag is beyond those of the pieces
	list []*request
	ends []int // by request: how many parts there are up to its last
}

// small is a kind of what is moved in batches.
type small uint8

const (
	tables small = iota
	headers
	statuses
)

// openMover gets the worker its share of the controller's DMA engine, if it has one.
func (w *worker) openMover() error {
	moving, ok := w.ctl.(epc.Moving)
	if !ok {
		return nil
	}
	if err := w.openPool(); err != nil {
		return err
	}
	for i := range w.all {
		w.all[i].slot = w.pool.slot(i)
	}
	pieces := len(w.pool.pieces)
	w.batches = make([]batch, batchCount)
	for i := range w.batches {
		b := &w.batches[i]
		b.move.Tag, b.move.Parts = pieces+i, make([]epc.Part, 0, batchSize)
		b.list, b.ends = make([]*request, 0, batchSize), make([]int, 0, batchSize)
		w.freeBatches = append(w.freeBatches, b)
	}
	w.tables = make([]*request, 0, len(w.all))
	w.headers = make([]*request, 0, len(w.all))
	w.answers = make([]*request, 0, len(w.all))
	bell, err := w.newMoveBell()
	if err != nil {
		return err
	}
	w.mover, err = moving.NewMover(pieces+batchCount, w.pool.memory, bell)
	return err
}

// awaitHeader has the header of a fresh request fetched. Data that the request brings
// comes along, unless its memory can be lent.
func (w *worker) awaitHeader(r *request) {
	data := int64(r.chain.ReadableLen) - virtioblk.HeaderLen
	if data == 0 || w.f.readOnly || w.lendable(&r.chain) {
		w.headers = append(w.headers, r)
		return
	}
	r.opening, r.dataLen, r.left = true, data, data
	w.queueUp(r)
}

// lendable says whether it looks as if what a request brings could be lent.
func (w *worker) lendable(c *vring.Chain) bool {
	if w.f.opts.TrapFree {
		return false
	}
	last := c.Readable[len(c.Readable)-1]
	b, err := w.mem.Lend(last.Addr, int(last.Len), vring.Read)
	return err == nil && len(b) > 0
}

// openWith fetches header and first data of r, the latter into p.
func (w *worker) openWith(r *request, p *piece) {
	p.n = int(min(r.left, int64(len(p.buf))))
	p.move.Dir = epc.FromHost
	p.move.Parts, r.data = cut(p.move.Parts[:0], r.chain.Readable, r.slot[:virtioblk.HeaderLen])
	p.move.Parts, r.data = cut(p.move.Parts, r.data, p.buf[:p.n])
	w.startMove(&p.move)
}

// opened goes on when header and first data of r are there.
func (w *worker) opened(r *request, p *piece) {
	r.opening, r.left, r.first = false, 0, p
	w.headerCame(r, nil)
}

// fetchTables sends for the indirect tables that are to be fetched. To wait for the
// only one is quicker than to be told of it.
func (w *worker) fetchTables() {
	if len(w.tables) == 0 || !w.proceeds() || !w.live() {
		return
	}
	if len(w.tables) == 1 && w.ring.InFlight() == 1 {
		r := w.tables[0]
		w.tables = w.tables[:0]
		w.tableCame(r, w.mem.ReadAt(r.table(), r.chain.Table.Addr))
		return
	}
	w.tables = w.sendBatches(tables, w.tables)
}

// table returns the memory for the request's indirect table.
func (r *request) table() []byte { return r.slot[slotTable:][:r.chain.Table.Len] }

// tableCame goes on when the table of a chain is there. Without it the ring cannot be
// served, as without other descriptors.
func (w *worker) tableCame(r *request, err error) {
	ok := false
	if err == nil {
		ok, err = w.ring.Complete(&r.chain, r.table())
	}
	if ok {
		err = w.begin(r, err)
	}
	if err != nil {
		w.fail(fmt.Errorf("queue %d: %w", w.index, err))
	}
}

// fetchHeaders is fetchTables for headers. Beside the time that much data is on the link a
// round trip is nothing, and it spares an interrupt.
func (w *worker) fetchHeaders() {
	if len(w.headers) == 0 || !w.proceeds() || !w.live() {
		return
	}
	if len(w.headers) == 1 && (w.ring.InFlight() == 1 || w.headers[0].chain.WritableLen > largeSize) {
		r := w.headers[0]
		w.headers = w.headers[:0]
		var err error
		r.data, err = w.gather(r.slot[:virtioblk.HeaderLen], r.chain.Readable)
		w.headerCame(r, err)
		return
	}
	w.headers = w.sendBatches(headers, w.headers)
}

// headerCame goes on when the header of a request is there, or could not be fetched.
func (w *worker) headerCame(r *request, err error) {
	status, goesOn := virtioblk.StatusIOErr, false
	if err != nil {
		w.refuse(r, "header", err)
	} else {
		status, goesOn = w.dispatch(r, r.data)
	}
	if p := r.first; p != nil { // of no use
		r.first = nil
		w.putBack(p)
	}
	if goesOn {
		return
	}
	if err := w.finish(r, status); err != nil {
		w.fail(err)
	}
}

// settle writes the status bytes of requests that are done otherwise, a single one by
// a transfer.
func (w *worker) settle() {
	switch {
	case len(w.answers) == 0 || !w.live():
	case len(w.answers) == 1:
		r := w.answers[0]
		w.answers = w.answers[:0]
		if err := w.answerAlone(r); err != nil {
			w.fail(err)
		}
	default:
		w.answers = w.sendBatches(statuses, w.answers)
	}
}

// answerAlone writes a status byte by a transfer, together with the used entry where that
// is one, too.
func (w *worker) answerAlone(r *request) error {
	write := w.mem.WriteAt
	if w.mem.reaches(w.queue.Desc) && w.mem.reaches(w.queue.Device) {
		write = w.mem.Post
	}
	if err := write(r.slot[slotStatus:][:virtioblk.StatusLen], r.status); err != nil {
		return fmt.Errorf("queue %d: status byte: %w", w.index, err)
	}
	w.push(r)
	return nil
}

// sendBatches starts the moves of as many of the requests as there are batches for,
// and returns the others.
func (w *worker) sendBatches(what small, list []*request) []*request {
	for len(list) > 0 && len(w.freeBatches) > 0 {
		b := w.freeBatches[len(w.freeBatches)-1]
		w.freeBatches = w.freeBatches[:len(w.freeBatches)-1]
		n := min(len(list), batchSize)
		b.list, b.ends = append(b.list[:0], list[:n]...), b.ends[:0]
		list = append(list[:0], list[n:]...)
		b.what, b.move.Dir, b.move.Parts = what, epc.FromHost, b.move.Parts[:0]
		for _, r := range b.list {
			switch what {
			case tables:
				b.move.Parts = append(b.move.Parts, epc.Part{Addr: r.chain.Table.Addr, Local: r.table()})
			case headers:
				b.move.Parts, r.data = cut(b.move.Parts, r.chain.Readable, r.slot[:virtioblk.HeaderLen])
			case statuses:
				b.move.Dir = epc.ToHost
				status := r.slot[slotStatus:][:virtioblk.StatusLen]
				b.move.Parts = append(b.move.Parts, epc.Part{Addr: r.status, Local: status})
			}
			b.ends = append(b.ends, len(b.move.Parts))
		}
		w.startMove(&b.move)
	}
	return list
}

// batchEnded goes on with the requests of a batch.
func (w *worker) batchEnded(b *batch) {
	from := 0
	for i, r := range b.list {
		if !w.live() {
			return // there may have been a reset while a part was tried again
		}
		var err error
		if b.move.Err != nil {
			err = w.copyParts(b.move.Dir, b.move.Parts[from:b.ends[i]])
		}
		from = b.ends[i]
		switch {
		case b.what == tables:
			w.tableCame(r, err)
		case b.what == headers:
			w.headerCame(r, err)
		case err != nil:
			w.fail(fmt.Errorf("queue %d: status byte: %w", w.index, err))
		default:
			w.push(r)
		}
	}
	w.freeBatches = append(w.freeBatches, b)
}
