package epfbackend

import (
	"context"
	"errors"
	"fmt"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/vring"
)

// This file leaves the queues of a driver to another process, and takes them over:
// epc.Lasting. All that this takes is in the record at any instant, so who leaves has only
// to come to rest; who died has not even done that.

var (
	errBusy   = errors.New("a queue cannot be left")
	errShared = errors.New("the disk may be in use by others, so that nothing tells when the requests of a server that died have ended")
)

var _ epc.Lasting = (*Function)(nil)

// Suspend implements epc.Lasting.
func (f *Function) Suspend(ctx context.Context) error {
	if f.record == nil {
		return fmt.Errorf("%w: there is no room to note where it is", errBusy)
	}
	f.sampler.stop()
	f.sampler = nil
	if err := f.rest(ctx, drained); err != nil {
		return err
	}
	if i := f.brokenQueue(); i >= 0 {
		return fmt.Errorf("%w: queue %d needs a reset", errBusy, i)
	}
	if !f.readOnly {
		if err := f.store.Flush(); err != nil {
			return fmt.Errorf("flush the disk: %w", err)
		}
	}
	f.leave()
	return nil
}

// leave ends the attachment. Registers, rings and record stay as they are.
func (f *Function) leave() {
	f.mu.Lock()
	f.record = nil
	f.mu.Unlock()
	f.regs.(*regfile.TrapFree).Abandon()
	f.background.Wait()
	f.refreshing.Lock()
	defer f.refreshing.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ctl, f.regs = nil, nil
}

// brokenQueue returns a queue that cannot be served on, -1 if there is none. Workers
// must be at rest.
func (f *Function) brokenQueue() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, w := range f.workers {
		if w != nil && w.broken && f.regs.Live(w.epoch) {
			return i
		}
	}
	return -1
}

// CanContinue implements epc.Lasting.
func (f *Function) CanContinue(c epc.Controller) error {
	_, _, err := f.left(c)
	return err
}

// left returns the record that was left with a controller, and the queues that were served.
func (f *Function) left(c epc.Controller) (*record, []servedQueue, error) {
	record := f.newRecord(c)
	if record == nil {
		return nil, nil, errRecord
	}
	if !f.info.Exclusive {
		return nil, nil, errShared
	}
	queues, err := record.read()
	return record, queues, err
}

// Continue implements epc.Lasting.
func (f *Function) Continue(c epc.Controller, gone bool) error {
	record, queues, err := f.left(c)
	if err != nil {
		return err
	}
	regs := regfile.AdoptTrapFree(f.trapFreeConfig(c), f)
	if gone {
		record.begin()
		regs.Disown()
		queues = nil
	}
	var r regfile.Running
	for _, q := range queues {
		r.Queues, r.Vectors = append(r.Queues, q.Queue), append(r.Vectors, q.vector)
	}
	f.mu.Lock()
	f.ctl, f.record, f.paused, f.resume = c, record, false, queues
	f.mu.Unlock()
	f.watch(c, regs, r)
	return nil
}

// note notes a queue that is started, and returns the format of its ring if another
// process has served it. The caller holds f.mu.
func (f *Function) note(i int, q regfile.Queue) vring.Format {
	if i < len(f.resume) {
		return f.resume[i].format
	}
	f.record.serve(i, q, f.regs.QueueVector(i))
	return vring.Undecided
}
