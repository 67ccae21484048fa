package epfbackend

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring"
)

// ErrNoStatus reports a descriptor chain without a device-writable byte: the
// driver could never learn what became of the request.
var ErrNoStatus = errors.New("request without a status byte")

// request is one descriptor chain on its way: header → steps at the disk →
// status. It is allocated once and reused.
//
// Where its memory cannot be lent, its data is on the way in pieces (bounce.go), and
// where that is reached by DMA, the header is fetched while others are served
// (batch.go).
type request struct {
	io     disk.IO // the step at the disk; io.Tag is the request's index
	chain  vring.Chain
	header virtioblk.Header
	status uint64 // bus address of the status byte

	data      []vring.Segment // of the chain, without header and status
	dataLen   int64           // bytes in data when the request began
	readBytes uint32          // bytes the device puts into data if all goes well

	lent bool         // the step at the disk uses host memory
	iov  []unix.Iovec // data as lent memory

	left     int64            // bytes that were not given to a piece yet
	at       int64            // where on the disk they are
	pieces   int              // on their way
	held     int              // buffers that those have
	inLine   bool             // for another
	first    *piece           // that came with the header, as long as nobody took it
	failed   bool             // a piece has; the others only end
	fate     virtioblk.Status // of the request when all pieces have ended
	opening  bool             // a piece is to bring the header
	answered bool             // the status byte went along with the data

	slot   []byte // header, status and table, where movers reach them; otherwise in small, without a table
	ranges [maxRanges * virtioblk.RangeLen]byte
	rest   []byte // ranges that are still to be executed
	small  [slotTable]byte
}

// begin executes the request of a fresh chain as far as it goes without
// waiting. malformed is what the ring found wrong with the chain itself. An
// error concerns the ring, not the request.
func (w *worker) begin(r *request, malformed error) error {
	r.header = virtioblk.Header{}
	r.data, r.dataLen, r.readBytes, r.rest = nil, 0, 0, nil
	r.failed, r.fate, r.opening, r.answered = false, virtioblk.StatusOK, false, false
	if err := w.frame(r); err != nil {
		return err
	}
	if malformed != nil {
		return w.finish(r, w.refuse(r, "chain", malformed))
	}
	status, goesOn := w.execute(r)
	if !goesOn {
		return w.finish(r, status)
	}
	return nil
}

// frame finds header and status; where one descriptor ends and the next begins
// means nothing (virtio 1.4 §2.7.4).
func (w *worker) frame(r *request) error {
	last := len(r.chain.Writable) - 1
	if last < 0 {
		return fmt.Errorf("queue %d: %w", w.index, ErrNoStatus)
	}
	s := &r.chain.Writable[last]
	s.Len--
	r.status = s.Addr + uint64(s.Len)
	if s.Len == 0 {
		r.chain.Writable = r.chain.Writable[:last]
	}
	return nil
}

// execute starts the request, or decides its fate at once.
func (w *worker) execute(r *request) (status virtioblk.Status, goesOn bool) {
	if r.chain.ReadableLen < virtioblk.HeaderLen {
		return w.refuse(r, "header", errShort), false
	}
	if w.mover != nil {
		w.awaitHeader(r)
		return 0, true
	}
	rest, err := w.gather(r.slot[:virtioblk.HeaderLen], r.chain.Readable)
	if err != nil {
		return w.refuse(r, "header", err), false
	}
	return w.dispatch(r, rest)
}

// dispatch is execute once the header is there; rest follows it. Data that came
// along with the header is in r.first, and rest then follows that.
func (w *worker) dispatch(r *request, rest []vring.Segment) (status virtioblk.Status, goesOn bool) {
	r.header = virtioblk.DecodeHeader(r.slot)
	switch r.header.Type {
	case virtioblk.TypeIn:
		r.setData(r.chain.Writable)
		r.readBytes = uint32(r.dataLen)
		return w.transfer(r, disk.Read, vring.Write)
	case virtioblk.TypeOut:
		r.setRest(rest)
		if w.f.readOnly {
			return virtioblk.StatusIOErr, false
		}
		return w.transfer(r, disk.Write, vring.Read)
	case virtioblk.TypeFlush:
		return w.flush(r)
	case virtioblk.TypeGetID:
		return w.answer(r, w.f.serial[:]), false
	case virtioblk.TypeGetLifetime:
		if w.f.lifetime == nil {
			return virtioblk.StatusUnsupp, false
		}
		return w.answer(r, w.f.lifetime), false
	case virtioblk.TypeDiscard, virtioblk.TypeWriteZeroes, virtioblk.TypeSecureErase:
		r.setRest(rest)
		return w.eraseRanges(r)
	}
	return virtioblk.StatusUnsupp, false
}

// setRest is setData with what follows the header.
func (r *request) setRest(segments []vring.Segment) {
	if r.first == nil {
		r.setData(segments)
	}
}

func (r *request) setData(segments []vring.Segment) {
	r.data, r.dataLen = segments, 0
	for _, s := range segments {
		r.dataLen += int64(s.Len) // the ring bounds the sum to 32 bits
	}
}

// transfer starts a read or write of the whole of r.data.
func (w *worker) transfer(r *request, op disk.Op, a vring.Access) (virtioblk.Status, bool) {
	off, ok := w.position(r.header.Sector, r.dataLen)
	if !ok {
		return w.refuse(r, "position", errOutside), false
	}
	if r.dataLen == 0 {
		return virtioblk.StatusOK, false
	}
	r.io.Op, r.io.Offset = op, off
	r.io.Durable = op == disk.Write && !w.f.cached()
	lent, err := false, error(nil)
	if !w.f.opts.TrapFree && r.first == nil {
		lent, err = w.lend(r, a)
	}
	switch {
	case err != nil:
		return w.refuse(r, "data", err), false
	case !lent:
		return w.startBounce(r)
	}
	r.io.Length, r.io.Iov = r.dataLen, r.iov
	r.lent = true
	w.lent++
	w.start(r)
	return 0, true
}

var (
	errOutside = errors.New("outside the disk, or not whole sectors")
	errShort   = errors.New("shorter than its type requires")
)

// position returns where n bytes at a sector are, in bytes, and whether the
// disk reaches that far.
func (w *worker) position(sector uint64, n int64) (off int64, ok bool) {
	size := uint64(w.f.size.Load()) / virtioblk.SectorSize
	if n%virtioblk.SectorSize != 0 || sector > size || uint64(n)/virtioblk.SectorSize > size-sector {
		return 0, false
	}
	return int64(sector * virtioblk.SectorSize), true
}

// lend makes r.iov from r.data. It returns false if some of the memory can only
// be reached by transfers.
func (w *worker) lend(r *request, a vring.Access) (bool, error) {
	r.iov = r.iov[:0]
	for _, s := range r.data {
		for s.Len > 0 {
			b, err := w.mem.Lend(s.Addr, int(s.Len), a)
			if err != nil {
				return false, err
			}
			if len(b) == 0 {
				return false, nil
			}
			iov := unix.Iovec{Base: &b[0]}
			iov.SetLen(len(b))
			r.iov = append(r.iov, iov)
			s.Addr, s.Len = s.Addr+uint64(len(b)), s.Len-uint32(len(b))
		}
	}
	return true, nil
}

func (w *worker) flush(r *request) (virtioblk.Status, bool) {
	w.f.flushes.Store(true)
	if w.f.readOnly {
		return virtioblk.StatusOK, false // nothing was written
	}
	r.io.Op, r.io.Offset, r.io.Length, r.io.Iov = disk.Flush, 0, 0, nil
	w.start(r)
	return 0, true
}

// answer puts b, or as much of it as there is room for, into the request's data.
func (w *worker) answer(r *request, b []byte) virtioblk.Status {
	r.setData(r.chain.Writable)
	b = b[:min(int64(len(b)), r.dataLen)]
	if _, err := w.scatter(r.data, b); err != nil {
		return w.refuse(r, "data", err)
	}
	r.readBytes = uint32(len(b))
	return virtioblk.StatusOK
}

func (w *worker) start(r *request) { w.engine.Start(&r.io) }

// completed takes the request on after a step at the disk.
func (w *worker) completed(r *request) {
	if r.lent {
		r.lent = false
		w.lent--
	}
	err := r.io.Err
	r.io.Err = nil
	if !w.live() {
		return
	}
	status, goesOn := virtioblk.StatusOK, false
	switch {
	case err != nil:
		status = w.diskError(r, err)
	case len(r.rest) > 0:
		status, goesOn = w.eraseNext(r)
	}
	if goesOn {
		return
	}
	if err := w.finish(r, status); err != nil {
		w.fail(err)
	}
}

// finish gives the chain back to the driver, after its status byte. Where DMA moves
// that, it is one of a batch.
func (w *worker) finish(r *request, status virtioblk.Status) error {
	r.fate = status
	if r.answered {
		w.push(r)
		return nil
	}
	r.slot[slotStatus] = byte(status)
	if w.mover != nil {
		w.answers = append(w.answers, r)
		return nil
	}
	return w.answerAlone(r)
}

// push adds a chain whose status is in host memory to those that are used.
func (w *worker) push(r *request) {
	// What is reported as written must have been written without a gap
	// (virtio 1.4 §2.7.8.2); the status comes last.
	written := uint32(0)
	if r.fate == virtioblk.StatusOK {
		written = r.readBytes
	}
	if uint64(written)+virtioblk.StatusLen == r.chain.WritableLen {
		written += virtioblk.StatusLen
	}
	w.ring.Push(&r.chain, written)
	w.unseen = true
	w.free = append(w.free, r)
}

// refuse is the status of a request that makes no sense.
func (w *worker) refuse(r *request, what string, err error) virtioblk.Status {
	if ok, held := w.complain.allow(); ok {
		w.log.Warn("request refused", "type", r.header.Type, "sector", r.header.Sector,
			"at", what, "err", err, "held_back", held)
	}
	return virtioblk.StatusIOErr
}

// diskError translates what the disk says: the one table of its kind.
func (w *worker) diskError(r *request, err error) virtioblk.Status {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return virtioblk.StatusUnsupp
	}
	if ok, held := w.complain.allow(); ok {
		w.log.Warn("the disk failed a request", "type", r.header.Type, "sector", r.header.Sector,
			"err", err, "held_back", held)
	}
	return virtioblk.StatusIOErr
}

// gather copies the first len(p) bytes of segments, which are as many at least, to p and
// returns what is left of the segments, which it edits.
func (w *worker) gather(p []byte, segments []vring.Segment) ([]vring.Segment, error) {
	return w.copyAll(epc.FromHost, p, segments)
}

// scatter copies p to the first bytes of segments, which are as many at least, and
// returns what is left of the segments, which it edits.
func (w *worker) scatter(segments []vring.Segment, p []byte) ([]vring.Segment, error) {
	return w.copyAll(epc.ToHost, p, segments)
}

func (w *worker) copyAll(d epc.Direction, p []byte, segments []vring.Segment) ([]vring.Segment, error) {
	w.parts, segments = cut(w.parts[:0], segments, p)
	return segments, w.copyParts(d, w.parts)
}
