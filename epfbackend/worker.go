package epfbackend

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/vblk-ep/vblk-ep/doorbell"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/vring"
)

// maxInFlight bounds the requests that one queue has at the disk. What a larger
// ring holds beyond that waits in the ring.
const maxInFlight = 1024

// maxChain bounds the descriptors of a request in a large ring: more data
// segments than any driver uses, for SEG_MAX tells it less, so that what is kept
// of each request stays small.
const maxChain = 1024

// manyInFlight is how many requests make a look at a ring that is reached by DMA cheap
// for each of them. Then the end of a move is reason enough for one, which finds what
// the driver has added some time before its notification is there.
const manyInFlight = 16

// worker serves one virtqueue, on a goroutine of its own that alone touches the
// ring and the requests.
//
// A turn takes what the disk has completed, publishes it, fetches what the
// driver made available and starts it; between turns the worker sleeps in its
// engine. A broken worker (the driver made nonsense of the ring, or its memory is
// gone) only lets its requests end, and stays quiet until it is stopped. The map
// of host memory changes during pauses; a worker whose ring is not on the map
// after one stays where it is until the next.
type worker struct {
	f     *Function
	index int
	gate  *gate
	gone  chan struct{} // closed when the goroutine has ended
	log   *slog.Logger

	ctl      epc.Controller
	mem      *patient
	queue    regfile.Queue
	accepted virtio.Features
	epoch    uint64       // of the activation it serves; trap-free only
	ring     vring.Queue  // nil until its format is known
	from     vring.Format // of the ring that another process has served; Undecided: none
	record   *record
	broken   bool
	engine   disk.Engine
	complain limiter

	free      []*request // not in use
	all       []request
	done      []*disk.IO // completed by the engine, not yet looked at
	lent      int        // requests at the engine that use host memory
	unseen    bool       // used buffers are pushed, not yet published
	more      bool       // the ring may hold more than was fetched
	unasked   bool       // the driver was not asked to notify, for the ring will be looked at
	asked     bool       // the driver will notify of the next chain, and there was none
	rung      bool       // it may have done so
	pace      pollPace
	looks     int  // for something to do, since it started
	late      bool // the last of them were for as long as it may be
	pool      pool
	parts     []epc.Part   // room for copyAll
	pinned    [][]byte     // memory that the engine was to hold; room for pinMemory
	turnGuard func() error // bound once, as armGuard, so that a turn does not allocate
	armGuard  func() error
	lookGuard func() error
	waiting   time.Duration // when the wait began, since started; 0 if it has not

	// Of host memory that is reached by DMA:
	mover       epc.Mover // nil: it is not
	moveBell    *doorbell.Trapped
	moved       []*epc.Move // ended, not yet looked at
	moving      int         // in flight
	moveCame    bool        // one has ended since the ring was looked at
	lost        bool        // the mover is broken
	batches     []batch
	freeBatches []*batch
	tables      []*request // whose indirect table is to be fetched
	headers     []*request // whose header is to be fetched
	answers     []*request // whose status is to be written
}

// startWorker starts the worker of queue i. at is where it begins: running or
// paused. The caller holds f.mu.
func startWorker(f *Function, i int, q regfile.Queue, at phase) *worker {
	w, err := newWorker(f, i, q, at)
	go w.run(at, err)
	return w
}

// newWorker makes a worker. After an error it can only be run to tell of it.
func newWorker(f *Function, i int, q regfile.Queue, at phase) (w *worker, err error) {
	w = &worker{
		f: f, index: i, gate: newGate(at), gone: make(chan struct{}),
		log: f.log.With("queue", i), ctl: f.ctl,
		queue: q, accepted: f.accepted, epoch: f.regs.Epoch(), from: f.note(i, q), record: f.record,
	}
	w.mem = newPatient(f.ctl.Memory().View(), w)
	w.turnGuard, w.armGuard, w.lookGuard = w.turn, w.arm, w.look
	w.pace.mode = f.opts.Poll
	if !f.opts.TrapFree {
		err = w.negotiatedRing()
	}
	depth := min(q.Size, maxInFlight)
	w.all = make([]request, depth)
	w.free = make([]*request, depth)
	for n := range w.all {
		w.all[n].io.Tag = n
		w.all[n].slot = w.all[n].small[:]
		w.free[n] = &w.all[n]
	}
	return w, err
}

// run is the worker's goroutine. Its thread ends with it, and takes along what
// the kernel bound to the thread. What began during a pause leaves it like every other.
func (w *worker) run(at phase, err error) {
	runtime.LockOSThread()
	defer close(w.gone)
	defer w.gate.reach(stopped)
	w.pin()
	if at == running || w.rest(at) {
		w.serve(err)
	}
	w.close()
	w.idle()
}

// serve is all that a worker does between a start and an end. err is what the start has
// come to so far.
func (w *worker) serve(err error) {
	if err == nil {
		err = w.open()
	}
	if err != nil {
		w.fail(fmt.Errorf("start queue %d: %w", w.index, err))
		return
	}
	w.more = true // the driver may have rung before we were there
	for w.step() {
	}
}

// open makes what the worker does its work with.
func (w *worker) open() (err error) {
	depth := len(w.all) + smallCount + largeCount
	w.engine, err = w.f.store.NewEngine(w.f.opts.Engine, depth, w.f.bells[w.index].FD())
	if err != nil {
		return err
	}
	if w.pins() { // the pool with host memory, and before that is in use
		if err := w.openPool(); err != nil {
			return err
		}
	}
	return w.openMover()
}

// close waits for what is in flight, and gives up what open has made.
func (w *worker) close() {
	if w.mover != nil {
		if err := w.mover.Close(); err != nil {
			w.log.Warn("DMA engine not closed cleanly", "err", err)
		}
	}
	if w.engine != nil {
		if err := w.engine.Close(); err != nil {
			w.log.Warn("disk engine not closed cleanly", "err", err)
		}
	}
	w.pool.close()
	if w.moveBell != nil {
		w.moveBell.Close()
	}
}

// newMoveBell returns an eventfd to be signalled when moves have ended. It is not the
// driver's doorbell: that stands for a look at its ring, which is a round trip.
func (w *worker) newMoveBell() (fd int, err error) {
	if w.moveBell, err = doorbell.NewTrapped(); err != nil {
		return -1, err
	}
	w.engine.Listen(w.moveBell.FD())
	return w.moveBell.FD(), nil
}

// ended says whether the goroutine is gone.
func (w *worker) ended() bool {
	select {
	case <-w.gone:
		return true
	default:
		return false
	}
}

// step does one turn and says whether there is to be another. A stop abandons
// what is in flight: the engine ends it, long operations early.
func (w *worker) step() bool {
	switch want := w.gate.wanted(); {
	case want == stopped:
		return false
	case w.restful(want):
		w.letGo()
		if w.rest(want) && w.pins() {
			w.pinMemory()
		}
		return true
	}
	var err error
	if w.done, err = w.await(); err != nil {
		w.fail(fmt.Errorf("queue %d: wait for the disk: %w", w.index, err))
		return false
	}
	for {
		err := shm.Guard(w.turnGuard)
		if err == nil {
			return !w.lost
		}
		// What has completed must still be accounted for, or the worker would
		// never become quiet; broken, it no longer touches the memory.
		w.fail(fmt.Errorf("queue %d: %w", w.index, err))
	}
}

// turn handles completions, then what is new in the ring. It touches host
// memory, and may be cut short by a fault in it.
func (w *worker) turn() error {
	w.live()
	for w.reap() {
		m := w.moved[0]
		w.moved = w.moved[1:]
		w.moving--
		w.moveCame = true
		w.moveEnded(m)
	}
	for len(w.done) > 0 {
		io := w.done[0]
		w.done = w.done[1:]
		if io.Tag < len(w.all) {
			w.completed(&w.all[io.Tag])
		} else {
			w.pieceAtDisk(&w.pool.pieces[io.Tag-len(w.all)])
		}
	}
	w.proceed()
	if err := w.fetch(); err != nil {
		return err
	}
	w.proceed()
	return w.publish()
}

// reap says whether there are moves that have ended.
func (w *worker) reap() bool {
	if len(w.moved) == 0 && w.mover != nil {
		w.moved = w.mover.Completed()
	}
	return len(w.moved) > 0
}

// proceed starts moves and pieces that can be, before transfers are waited for.
func (w *worker) proceed() {
	w.fetchTables()
	w.fetchHeaders()
	w.feed()
	w.settle()
	w.submit()
}

// submit hands moves to the DMA engine. When that is broken it never tells their end.
func (w *worker) submit() {
	if w.mover == nil || w.lost {
		return
	}
	if err := w.mover.Submit(); err != nil {
		w.lost = true
		w.fail(fmt.Errorf("queue %d: submit to the DMA engine: %w", w.index, err))
	}
}

// fetch starts what the driver made available, as long as there are requests to
// hold it, and asks to be notified once there is nothing more.
func (w *worker) fetch() error {
	many := w.ring != nil && w.ring.InFlight() >= manyInFlight
	came := w.more || w.rung || many && w.moveCame
	w.moveCame = false
	w.more, w.unasked = false, false
	if w.broken || w.gate.wanted() != running {
		return nil
	}
	if w.ring == nil {
		if err := w.findRing(); err != nil || w.ring == nil {
			return err
		}
	}
	if w.asked && w.mover != nil { // each look is a round trip
		if !came {
			return nil
		}
		w.rung = false
		if more, err := w.ring.Available(); err != nil || !more {
			return err
		}
	}
	w.asked, w.rung = false, false
	if err := w.ring.DisableNotifications(); err != nil {
		return err
	}
	// A driver that makes available as fast as we serve must not keep us here.
	for budget := len(w.all); ; {
		if err := w.take(&budget); err != nil {
			return err
		}
		if len(w.free) == 0 || w.broken {
			return nil // a completion will bring us back
		}
		if w.more = budget == 0 || w.gate.wanted() != running; w.more {
			return nil
		}
		if w.pace.budget(w.cause()) != 0 && (w.mover == nil || w.pace.mode == PollAlways) {
			w.unasked = true // it will be looked at
			return nil
		}
		w.proceed()
		if err := w.arm(); err != nil || !w.more {
			return err
		}
	}
}

// take starts the chains that are there, at most as many as the budget says, and none
// once something else is wanted: each may be waited for. Where a look is a round trip,
// it leaves it to who asks to be notified to look for more.
func (w *worker) take(budget *int) error {
	for taken := 0; len(w.free) > 0 && *budget > 0; *budget-- {
		if !w.live() || w.gate.wanted() != running || taken > 0 && w.mover != nil && !w.ring.Known() {
			return nil
		}
		r := w.free[len(w.free)-1]
		ok, err := w.ring.Next(&r.chain)
		if !ok {
			return err
		}
		taken++
		w.free = w.free[:len(w.free)-1]
		if r.chain.Table.Len > 0 {
			w.tables = append(w.tables, r)
			continue
		}
		if err := w.begin(r, err); err != nil {
			return err
		}
	}
	return nil
}

// publish shows the driver what was used, and interrupts it if it wants that.
func (w *worker) publish() error {
	if !w.live() {
		return nil
	}
	if !w.unseen {
		return w.mem.flush()
	}
	w.unseen = false
	interrupt, err := w.ring.Publish()
	if err == nil && interrupt {
		w.interrupt()
	}
	return err
}

// live says whether the memory of the host may be touched. A driver does not
// wait for a trap-free device to finish its reset, so whether there was one is
// looked up each time; a no is final.
func (w *worker) live() bool {
	if !w.broken && !w.f.regs.Live(w.epoch) {
		w.broken = true
		w.f.wake()
	}
	return !w.broken
}

// fail stops the service of this queue until a reset. That is on its way already if the
// host has gone.
func (w *worker) fail(err error) {
	if w.broken {
		return
	}
	w.broken = true
	if errors.Is(err, epc.ErrAway) || vring.IsMalformed(err) && w.hostLeaves() {
		w.log.Info("the queue has ended", "err", err)
		return
	}
	w.f.fail(err)
}

// leaving is how long it may take until we are told that the host has gone.
const leaving = 250 * time.Millisecond

// hostLeaves says whether the host goes away just now, where it is reached by transfers. On
// a link that goes down reads of the processor return ones, and that makes no ring.
func (w *worker) hostLeaves() bool {
	if w.mover == nil {
		return false
	}
	for end := time.Now().Add(leaving); time.Now().Before(end); time.Sleep(awayNap) {
		if w.gate.wanted() == stopped || !w.f.regs.Live(w.epoch) {
			return true
		}
	}
	return false
}
