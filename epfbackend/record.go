package epfbackend

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring"
)

// Layout of the record: a header, an entry for each queue, and then the queues' journals,
// little-endian. What serves a queue writes its journal (see package vring); the rest is
// written when queues start and stop.
const (
	recordVersion = 0x00 // u32
	recordServed  = 0x04 // u32: queues that are served, the last store of a start
	recordTraits  = 0x08 // u64
	recordHeader  = 0x10

	recordDesc   = 0x00 // u64
	recordDriver = 0x08 // u64
	recordDevice = 0x10 // u64
	recordSize   = 0x18 // u16
	recordVector = 0x1a // u16
	recordFormat = 0x1c // u32: Undecided until the journal holds
	recordEntry  = 0x20

	recordThis = 2
)

var errRecord = errors.New("no function like this one has left a record")

// record is what another process needs to go on, at any instant: the queues of the
// driver, and what is in flight in each. It is the registers' complement, which are in
// memory that outlives the process as well.
type record struct {
	w       shm.Window
	traits  uint64
	queues  int // that there is room for
	journal int // bytes of each
}

// servedQueue is a queue as it stands in a record.
type servedQueue struct {
	regfile.Queue
	vector uint16
	format vring.Format // Undecided: the driver has made nothing available
}

// newRecord returns the record of a function at a controller, as it was left there; nil
// if there is no room for one.
func (f *Function) newRecord(c epc.Controller) *record {
	keeper, ok := c.(epc.Recording)
	if !ok || !f.opts.TrapFree {
		return nil
	}
	r := &record{traits: f.traits(), queues: f.opts.Queues, journal: vring.JournalLen(f.opts.QueueSize)}
	b := keeper.Record()
	if len(b) < r.journals()+r.queues*r.journal || r.journal == 0 {
		if b != nil {
			f.log.Warn("nobody can go on with this function when its server dies: its queues are too large or too many for the controller's memory: choose a smaller queue-size or fewer queues",
				"bytes", len(b))
		}
		return nil
	}
	r.w = shm.Of(b)
	return r
}

// traits tells functions apart that a driver must not be handed from one to the other:
// by what they offer, and what disk they are. Its size may change.
func (f *Function) traits() uint64 {
	config := f.deviceConfig()
	clear(config[virtioblk.CfgCapacity:][:8])
	config[virtioblk.CfgWriteback] = 0
	clear(config[virtioblk.CfgCylinders:][:2])
	h := fnv.New64a()
	fmt.Fprintf(h, "%v %d %d %x %x", f.offered, f.opts.Queues, f.opts.QueueSize, config, f.serial)
	return h.Sum64()
}

func (r *record) entry(i int) int { return recordHeader + i*recordEntry }

// journals returns where the first journal is.
func (r *record) journals() int { return (r.entry(r.queues) + 15) &^ 15 }

// begin makes the record that of a function that serves nobody.
func (r *record) begin() {
	if r == nil {
		return
	}
	r.w.Store32(recordServed, 0)
	binary.LittleEndian.PutUint64(r.w.Bytes()[recordTraits:], r.traits)
	r.w.Store32(recordVersion, recordThis)
}

// serve notes that queue i is served, and all before it.
func (r *record) serve(i int, q regfile.Queue, vector uint16) {
	if r == nil {
		return
	}
	r.w.Store32(r.entry(i)+recordFormat, uint32(vring.Undecided))
	e := r.w.Bytes()[r.entry(i):][:recordEntry]
	le := binary.LittleEndian
	le.PutUint64(e[recordDesc:], q.Desc)
	le.PutUint64(e[recordDriver:], q.Driver)
	le.PutUint64(e[recordDevice:], q.Device)
	le.PutUint16(e[recordSize:], uint16(q.Size))
	le.PutUint16(e[recordVector:], vector)
	r.w.Store32(recordServed, uint32(i+1))
}

// stop notes that nobody is served any more.
func (r *record) stop() {
	if r != nil {
		r.w.Store32(recordServed, 0)
	}
}

// of returns the journal of queue i, nil for none.
func (r *record) of(i int) []byte {
	if r == nil {
		return nil
	}
	return r.w.Bytes()[r.journals()+i*r.journal:][:r.journal]
}

// decide notes that the journal of queue i holds, and is of that format.
func (r *record) decide(i int, format vring.Format) {
	if r != nil {
		r.w.Store32(r.entry(i)+recordFormat, uint32(format))
	}
}

// read returns the queues that were served.
func (r *record) read() ([]servedQueue, error) {
	le, b := binary.LittleEndian, r.w.Bytes()
	if r.w.Load32(recordVersion) != recordThis || le.Uint64(b[recordTraits:]) != r.traits {
		return nil, errRecord
	}
	n := r.w.Load32(recordServed)
	if n > uint32(r.queues) {
		return nil, errRecord
	}
	queues := make([]servedQueue, n)
	for i := range queues {
		e := b[r.entry(i):][:recordEntry]
		q := servedQueue{
			Queue: regfile.Queue{
				Size: int(le.Uint16(e[recordSize:])),
				Desc: le.Uint64(e[recordDesc:]), Driver: le.Uint64(e[recordDriver:]), Device: le.Uint64(e[recordDevice:]),
			},
			vector: le.Uint16(e[recordVector:]),
		}
		format := le.Uint32(e[recordFormat:])
		if n := vring.JournalLen(q.Size); q.Size == 0 || n == 0 || n > r.journal || format > uint32(vring.PackedFormat) {
			return nil, errRecord
		}
		q.format = vring.Format(format)
		queues[i] = q
	}
	return queues, nil
}
