package rc

import (
	"fmt"
	"time"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// QueueConfig says what queue a client sets up.
type QueueConfig struct {
	Index  int
	Size   int    // 0: as large as the device allows
	Vector uint16 // virtiopci.NoVector: completions are only polled
	// Indirect is how many descriptors an indirect table can hold; 0: requests
	// are chains of direct descriptors.
	Indirect int
}

// Queue is one virtqueue with block requests on it. It belongs to one goroutine.
type Queue struct {
	*vringtest.Driver
	dev    *Device
	cfg    QueueConfig
	mem    *vringtest.Memory
	byHead []*Request // in flight
	bar    int        // where to notify
	off    uint64
	index  [2]byte // what to write there
	kicks  int64
	last   [1]*Request // what Finish waits for
	event  event
}

// NewQueue lays a queue out in mem and enables it. The features must have been
// negotiated.
func NewQueue(d *Device, mem *vringtest.Memory, cfg QueueConfig) (*Queue, error) {
	if cfg.Size == 0 {
		limit, err := d.QueueLimit(cfg.Index)
		if err != nil {
			return nil, err
		}
		cfg.Size = limit
	}
	q := &Queue{dev: d, mem: mem, cfg: cfg, byHead: make([]*Request, cfg.Size)}
	if !d.accepted.Has(virtio.IndirectDesc) {
		q.cfg.Indirect = 0
	}
	q.index = [2]byte{byte(cfg.Index), byte(cfg.Index >> 8)}
	return q, q.enable()
}

// enable lays out a fresh ring and tells the device of it.
func (q *Queue) enable() (err error) {
	q.Driver, err = vringtest.NewDriver(q.mem, vringtest.Config{
		Size: q.cfg.Size, EventIdx: q.dev.accepted.Has(virtio.EventIdx), Indirect: q.cfg.Indirect,
	})
	if err != nil {
		return err
	}
	clear(q.byHead)
	if err := q.dev.EnableQueue(q.cfg.Index, q.Queue(), q.cfg.Vector); err != nil {
		return err
	}
	q.bar, q.off, err = q.dev.notifyAddress(q.cfg.Index)
	return err
}

// Renew resets the queue and enables it again (§2.6.1). What was in flight is
// forgotten. The ring takes new memory.
func (q *Queue) Renew() error {
	if err := q.dev.ResetQueue(q.cfg.Index); err != nil {
		return err
	}
	return q.enable()
}

// Kicks returns how many notifications were sent.
func (q *Queue) Kicks() int64 { return q.kicks }

// Request is one block request with memory of its own. It can be submitted again
// and again.
type Request struct {
	virtioblk.Header
	Len    int              // bytes of data to transfer, at most the size of the buffer
	Status virtioblk.Status // when it is done
	// Written is how many bytes the device says it wrote.
	Written uint32

	header, status, data uint64 // bus addresses

	size     int // of the buffer at data
	mem      *vringtest.Memory
	segments [3]vring.Segment
}

// unanswered is what a status reads as while the device has not written it.
const unanswered = 0xff

// NewRequest returns a request with a contiguous buffer of size bytes, at a page.
// Its header lies right before the buffer, and its status right behind, so that
// a descriptor may cover more than one part.
func (q *Queue) NewRequest(size int) (*Request, error) {
	const page = 4096
	base, err := q.mem.Alloc(page+size+virtioblk.StatusLen, page)
	if err != nil {
		return nil, err
	}
	data := base + page
	return &Request{
		Len: size, size: size, mem: q.mem,
		header: data - virtioblk.HeaderLen, data: data, status: data + uint64(size),
	}, nil
}

// Data returns the request's buffer.
func (r *Request) Data() []byte { return r.mem.Bytes(r.data, r.size) }

// DataAddr returns the bus address of the request's buffer.
func (r *Request) DataAddr() uint64 { return r.data }

// HeaderAddr returns the bus address of the request's header.
func (r *Request) HeaderAddr() uint64 { return r.header }

// StatusAddr returns the bus address of the request's status.
func (r *Request) StatusAddr() uint64 { return r.status }

// reads says whether the device writes the data of a request of that type.
func reads(t virtioblk.RequestType) bool {
	switch t {
	case virtioblk.TypeIn, virtioblk.TypeGetID, virtioblk.TypeGetLifetime:
		return true
	}
	return false
}

// Submit adds r to the ring. The device sees it after Kick.
func (q *Queue) Submit(r *Request) error {
	s := append(r.segments[:0], vring.Segment{Addr: r.header, Len: virtioblk.HeaderLen})
	if r.Len > 0 {
		s = append(s, vring.Segment{Addr: r.data, Len: uint32(r.Len)})
	}
	readable := len(s)
	if r.Len > 0 && reads(r.Type) {
		readable--
	}
	s = append(s, vring.Segment{Addr: r.status, Len: virtioblk.StatusLen})
	return q.SubmitChain(r, s[:readable], s[readable:])
}

// SubmitChain is Submit with the descriptors chosen by the caller.
func (q *Queue) SubmitChain(r *Request, readable, writable []vring.Segment) error {
	r.Encode(r.mem.Bytes(r.header, virtioblk.HeaderLen))
	r.mem.Bytes(r.status, 1)[0] = unanswered
	r.Status = unanswered
	head, err := q.add(readable, writable)
	if err == nil {
		q.byHead[head] = r
	}
	return err
}

func (q *Queue) add(readable, writable []vring.Segment) (uint16, error) {
	if q.cfg.Indirect > 0 {
		return q.AddIndirect(readable, writable)
	}
	return q.Add(readable, writable)
}

// Kick makes what was submitted visible, and notifies the device if it wants
// that.
func (q *Queue) Kick() error {
	if !q.Driver.Kick() {
		return nil
	}
	return q.Notify()
}

// Notify notifies the device, whether it wants that or not.
func (q *Queue) Notify() error {
	q.kicks++
	return q.dev.bus.WriteBAR(q.bar, q.off, q.index[:])
}

// Poll appends the requests that are done to done.
func (q *Queue) Poll(done []*Request) ([]*Request, error) {
	for {
		u, ok, err := q.Collect()
		if !ok || err != nil {
			return done, err
		}
		r := q.byHead[u.Head]
		if r == nil {
			return done, fmt.Errorf("%w: chain %d used twice", ErrDevice, u.Head)
		}
		q.byHead[u.Head] = nil
		r.Written = u.Written
		r.Status = virtioblk.Status(r.mem.Bytes(r.status, 1)[0])
		done = append(done, r)
	}
}

// Wait is Poll, but waits for an interrupt if nothing is done yet. The error
// wraps ErrTimeout if none comes.
func (q *Queue) Wait(done []*Request, timeout time.Duration) ([]*Request, error) {
	end := time.Now().Add(timeout)
	before := len(done)
	for {
		var err error
		if done, err = q.Poll(done); err != nil || len(done) > before {
			return done, err
		}
		if q.EnableInterrupts() {
			continue
		}
		if q.cfg.Vector == virtiopci.NoVector && q.dev.intx < 0 {
			time.Sleep(10 * time.Microsecond)
			if time.Now().After(end) {
				return done, fmt.Errorf("%w: %d requests in flight", ErrTimeout, q.InFlight())
			}
			continue
		}
		came, _, err := q.dev.awaitWith(&q.event, q.cfg.Vector, time.Until(end))
		if err != nil {
			return done, err
		}
		q.DisableInterrupts()
		if !came {
			return done, fmt.Errorf("%w: %d requests in flight, no interrupt", ErrTimeout, q.InFlight())
		}
	}
}

// Do submits r, waits until it is done, and returns its status. Nothing else may
// be in flight.
func (q *Queue) Do(r *Request) (virtioblk.Status, error) {
	if err := q.Submit(r); err != nil {
		return 0, err
	}
	return q.Finish(r)
}

// Finish kicks, and waits for the last request in flight.
func (q *Queue) Finish(r *Request) (virtioblk.Status, error) {
	if err := q.Kick(); err != nil {
		return 0, err
	}
	if _, err := q.Wait(q.last[:0], patience); err != nil {
		return 0, err
	}
	return r.Status, nil
}
