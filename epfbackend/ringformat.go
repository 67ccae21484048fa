package epfbackend

import (
	"errors"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/vring"
)

// RingFormats says which formats of a virtqueue a driver may use.
type RingFormats uint8

// What a driver may use. One that is offered both takes the one it prefers;
// Linux prefers packed. One that does not know packed virtqueues (firmware) is
// refused where they are all there is.
const (
	RingSplit RingFormats = iota
	RingPacked
	RingBoth
)

// negotiatedRing makes the ring of a queue by what the driver negotiated.
func (w *worker) negotiatedRing() error {
	if w.accepted.Has(virtio.RingPacked) {
		return w.makeRing(vring.PackedFormat)
	}
	return w.makeRing(vring.SplitFormat)
}

// findRing makes the ring of a queue by what stands in its memory, for what the
// driver negotiated is not known: once the driver has made something available,
// its format can be told.
//
// A ring off the map of host memory is not an error. The queue was found some time
// after the driver had set it up, and its memory may be gone for a moment by then:
// firmware that changes the memory map does that. It is looked for again when the
// map has changed. A ring that is taken over has to be there.
func (w *worker) findRing() error {
	if w.from != vring.Undecided {
		return w.resumeRing()
	}
	format, err := vring.FormatEvidence(w.mem, w.queue.Desc, w.queue.Driver)
	if err == nil && format != vring.Undecided {
		err = w.makeRing(format)
	}
	switch {
	case errors.Is(err, vring.ErrUnmapped):
		if ok, held := w.complain.allow(); ok {
			w.log.Info("ring memory is not there", "err", err, "held_back", held)
		}
		return nil
	case w.ring != nil:
		w.log.Info("ring found", "format", format, "size", w.queue.Size)
	}
	return err
}

// resumeRing makes the ring of a queue that another process has served. The driver is
// interrupted, in case that it was not told of what was used last.
func (w *worker) resumeRing() error {
	if err := w.makeRing(w.from); err != nil {
		return err
	}
	w.log.Info("ring taken over", "format", w.from, "size", w.queue.Size, "again", w.ring.Inherited())
	w.from = vring.Undecided
	w.interrupt()
	return nil
}

func (w *worker) makeRing(format vring.Format) (err error) {
	trapFree := w.f.opts.TrapFree
	cfg := vring.Config{
		Size: w.queue.Size, Desc: w.queue.Desc, Driver: w.queue.Driver, Device: w.queue.Device,
		EventIdx: w.accepted.Has(virtio.EventIdx) && !trapFree,
		Indirect: w.accepted.Has(virtio.IndirectDesc),
		// A driver that chose a smaller ring still has our SEG_MAX to go by.
		MaxChain: min(max(w.queue.Size, w.f.opts.QueueSize), maxChain),
		Journal:  w.record.of(w.index), Resume: w.from != vring.Undecided,
	}
	if _, ok := w.ctl.(epc.Moving); ok {
		cfg.Deferred = slotLen - slotTable
	}
	if format == vring.PackedFormat {
		w.ring, err = vring.NewPacked(w.mem, cfg)
	} else {
		w.ring, err = vring.NewSplit(w.mem, cfg)
	}
	if err != nil {
		w.ring = nil // and not an interface that holds a nil
		return err
	}
	w.record.decide(w.index, format)
	return nil
}
