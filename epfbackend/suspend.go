package epfbackend

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/vring"
)

// This file leaves the queues of a driver to another process, and takes them over:
// epc.Lasting. What the registers, which stay, do not tell is kept beside them.

// ringState is where a ring is.
type ringState struct {
	format   vring.Format // Undecided: the driver has made nothing available
	position uint16
}

// queueState is one queue that is served.
type queueState struct {
	queue  regfile.Queue
	vector uint16
	ring   ringState
}

// Layout of the kept state: a header and one entry for each queue, little-endian.
const (
	keptVersion = 0 // u16
	keptQueues  = 2 // u16
	keptHeader  = 8

	keptDesc     = 0  // u64
	keptDriver   = 8  // u64
	keptDevice   = 16 // u64
	keptSize     = 24 // u16
	keptVector   = 26 // u16
	keptPosition = 28 // u16
	keptFormat   = 30 // u8
	keptEntry    = 32

	stateVersion = 1
)

var (
	errState = errors.New("state of another version")
	errBusy  = errors.New("a queue cannot be left")
)

var _ epc.Lasting = (*Function)(nil)

// Suspend implements epc.Lasting.
func (f *Function) Suspend(ctx context.Context) ([]byte, error) {
	regs, ok := f.regs.(*regfile.TrapFree)
	if !ok {
		return nil, fmt.Errorf("%w: its registers are not in memory", errBusy)
	}
	f.sampler.stop()
	f.sampler = nil
	if err := f.rest(ctx, drained); err != nil {
		return nil, err
	}
	queues, err := f.queueStates(regs.Running())
	if err != nil {
		return nil, err
	}
	if !f.readOnly {
		if err := f.store.Flush(); err != nil {
			return nil, fmt.Errorf("flush the disk: %w", err)
		}
	}
	regs.Abandon()
	f.background.Wait()
	f.refreshing.Lock()
	defer f.refreshing.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ctl, f.regs = nil, nil
	return encodeState(queues), nil
}

// queueStates returns the state of the queues that run, whose workers are drained.
func (f *Function) queueStates(r regfile.Running) ([]queueState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var states []queueState
	for i, q := range r.Queues {
		w := f.workers[i]
		if w == nil {
			return nil, fmt.Errorf("%w: queue %d is not served", errBusy, i)
		}
		ring, ok := w.state()
		if !ok {
			return nil, fmt.Errorf("%w: queue %d needs a reset", errBusy, i)
		}
		s := queueState{queue: q, vector: r.Vectors[i], ring: ring}
		states = append(states, s)
	}
	return states, nil
}

// state returns where the ring of a worker is, which is drained, and whether another
// one can go on from there.
func (w *worker) state() (s ringState, ok bool) {
	if w.from != nil {
		return *w.from, !w.broken // it was not looked at yet
	}
	switch w.ring.(type) {
	case nil:
		return ringState{}, !w.broken
	case *vring.Packed:
		s.format = vring.PackedFormat
	default:
		s.format = vring.SplitFormat
	}
	s.position, ok = w.ring.Position()
	return s, ok && !w.broken
}

// Continue implements epc.Lasting.
func (f *Function) Continue(c epc.Controller, state []byte) error {
	queues, err := decodeState(state)
	if err != nil {
		return err
	}
	var r regfile.Running
	for _, q := range queues {
		r.Queues, r.Vectors = append(r.Queues, q.queue), append(r.Vectors, q.vector)
	}
	f.mu.Lock()
	f.ctl, f.paused, f.resume = c, false, queues
	f.mu.Unlock()
	f.watch(c, regfile.AdoptTrapFree(f.trapFreeConfig(c), f), r)
	f.mu.Lock()
	f.resume = nil
	f.mu.Unlock()
	f.tellSize(f.size.Load()) // it may have changed while nobody looked
	return nil
}

// resumed returns where the ring of queue i is to go on, nil for its start. The
// caller holds f.mu.
func (f *Function) resumed(i int) *ringState {
	if i >= len(f.resume) || f.resume[i].ring.format == vring.Undecided {
		return nil
	}
	return &f.resume[i].ring
}

func encodeState(queues []queueState) []byte {
	le := binary.LittleEndian
	b := make([]byte, keptHeader+keptEntry*len(queues))
	le.PutUint16(b[keptVersion:], stateVersion)
	le.PutUint16(b[keptQueues:], uint16(len(queues)))
	for i, q := range queues {
		e := b[keptHeader+keptEntry*i:]
		le.PutUint64(e[keptDesc:], q.queue.Desc)
		le.PutUint64(e[keptDriver:], q.queue.Driver)
		le.PutUint64(e[keptDevice:], q.queue.Device)
		le.PutUint16(e[keptSize:], uint16(q.queue.Size))
		le.PutUint16(e[keptVector:], q.vector)
		le.PutUint16(e[keptPosition:], q.ring.position)
		e[keptFormat] = uint8(q.ring.format)
	}
	return b
}

func decodeState(b []byte) ([]queueState, error) {
	le := binary.LittleEndian
	if len(b) < keptHeader || le.Uint16(b[keptVersion:]) != stateVersion {
		return nil, errState
	}
	n := int(le.Uint16(b[keptQueues:]))
	if len(b) != keptHeader+keptEntry*n {
		return nil, errState
	}
	queues := make([]queueState, n)
	for i := range queues {
		e := b[keptHeader+keptEntry*i:]
		queues[i] = queueState{
			queue: regfile.Queue{
				Size: int(le.Uint16(e[keptSize:])),
				Desc: le.Uint64(e[keptDesc:]), Driver: le.Uint64(e[keptDriver:]), Device: le.Uint64(e[keptDevice:]),
			},
			vector: le.Uint16(e[keptVector:]),
			ring:   ringState{format: vring.Format(e[keptFormat]), position: le.Uint16(e[keptPosition:])},
		}
		if queues[i].ring.format > vring.PackedFormat {
			return nil, errState
		}
	}
	return queues, nil
}
