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
	// Batch is how many requests Poll and Wait return at most; 0: all that are done.
	Batch int
}

// Queue is one virtqueue with block requests on it, packed if that was negotiated,
// else split. It belongs to one goroutine.
type Queue struct {
	// Driver is a split virtqueue itself, for who wants to misbehave; nil when the
	// queue is packed.
	*vringtest.Driver
	ring       vringtest.Virtqueue // whatever its format
	dev        *Device
	cfg        QueueConfig
	mem        *vringtest.Memory
	byHead     []*Request // in flight
	bar        int        // where to notify
	off        uint64
	index      [2]byte // what to write there
	kicks      int64
	interrupts int64
	last       [1]*Request // what Finish waits for
	event      event
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
	q.ring, err = vringtest.New(q.mem, vringtest.Config{
		Size: q.cfg.Size, Packed: q.dev.accepted.Has(virtio.RingPacked),
		EventIdx: q.dev.accepted.Has(virtio.EventIdx), Indirect: q.cfg.Indirect,
	})
	if err != nil {
		return err
	}
	q.Driver, _ = q.ring.(*vringtest.Driver)
	clear(q.byHead)
	if err := q.dev.EnableQueue(q.cfg.Index, q.ring.Queue(), q.cfg.Vector); err != nil {
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

// InFlight returns how many requests were submitted and not yet collected.
func (q *Queue) InFlight() int { return q.ring.InFlight() }

// DisableInterrupts says that interrupts are not needed, until Wait.
func (q *Queue) DisableInterrupts() { q.ring.DisableInterrupts() }

// Kicks returns how many notifications were sent.
func (q *Queue) Kicks() int64 { return q.kicks }

// Interrupts returns how many interrupts Wait has waited for.
func (q *Queue) Interrupts() int64 { return q.interrupts }

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
	r.Encode(r.headerBytes)
	r.statusByte[0] = unanswered
	r.Status = unanswered
	head, err := q.add(readable, writable)
	if err == nil {
		q.byHead[head] = r
	}
	return err
}

func (q *Queue) add(readable, writable []vring.Segment) (uint16, error) {
	if q.cfg.Indirect > 0 {
		return q.ring.AddIndirect(readable, writable)
	}
	return q.ring.Add(readable, writable)
}

// Kick makes what was submitted visible, and notifies the device if it wants
// that.
func (q *Queue) Kick() error {
	if !q.ring.Kick() {
		return nil
	}
	return q.Notify()
}

// Notify notifies the device, whether it wants that or not.
func (q *Queue) Notify() error {
	q.kicks++
	return q.dev.bus.WriteBAR(q.bar, q.off, q.index[:])
}

// Poll appends the requests that are done to done, as many as the queue's Batch
// allows.
func (q *Queue) Poll(done []*Request) ([]*Request, error) {
	for n := 0; ; n++ {
		if n > 0 && n == q.cfg.Batch {
			return done, nil
		}
		u, ok, err := q.ring.Collect()
		if !ok || err != nil {
			return done, err
		}
		r := q.byHead[u.Head]
		if r == nil {
			return done, fmt.Errorf("%w: chain %d used twice", ErrDevice, u.Head)
		}
		q.byHead[u.Head] = nil
		r.Written = u.Written
		r.Status = virtioblk.Status(r.statusByte[0])
		done = append(done, r)
	}
}

// Wait is Poll, but waits for an interrupt if nothing is done yet. The error
// wraps ErrTimeout if none comes.
func (q *Queue) Wait(done []*Request, timeout time.Duration) ([]*Request, error) {
	before := len(done)
	done, err := q.Poll(done)
	if err != nil || len(done) > before {
		return done, err
	}
	for end := time.Now().Add(timeout); ; {
		if !q.ring.EnableInterrupts() {
			if err := q.await(end); err != nil {
				return done, err
			}
		}
		if done, err = q.Poll(done); err != nil || len(done) > before {
			return done, err
		}
	}
}

// await waits for an interrupt, or without one for a moment.
func (q *Queue) await(end time.Time) error {
	if q.cfg.Vector == virtiopci.NoVector && q.dev.intx < 0 {
		time.Sleep(10 * time.Microsecond)
		if time.Now().After(end) {
			return fmt.Errorf("%w: %d requests in flight", ErrTimeout, q.InFlight())
		}
		return nil
	}
	came, _, err := q.dev.awaitWith(&q.event, q.cfg.Vector, time.Until(end))
	if err != nil {
		return err
	}
	q.ring.DisableInterrupts()
	if !came {
		return fmt.Errorf("%w: %d requests in flight, no interrupt", ErrTimeout, q.InFlight())
	}
	q.interrupts++
	return nil
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
