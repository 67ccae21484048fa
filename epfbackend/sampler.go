package epfbackend

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/doorbell"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
)

const (
	// ReactionTime bounds how long after a driver's write an idle trap-free
	// function of one queue notices it, not counting how late the machine's
	// scheduler is.
	ReactionTime = 20 * time.Millisecond

	// ReactionTimeQueues is that of a function of several queues: a reset must be
	// seen before the next driver sets up its second queue.
	ReactionTimeQueues = time.Millisecond

	// After a notification the sampler does not sleep for samplerSpin, and then
	// the longer the longer nothing came, from samplerNap up to the reaction time.
	samplerSpin = 20 * time.Microsecond
	samplerNap  = 50 * time.Microsecond

	// A function of several queues that serves nobody waits for a driver with
	// samplerWatch between two looks. While the driver sets up the queues nothing
	// may be missed, so the sampler stares, until the driver has not moved for
	// samplerBored. It blinks every so often, of its own accord: who runs for 10 ms
	// is made to wait by the runtime, for longer.
	samplerWatch = 200 * time.Microsecond
	samplerStare = 3 * time.Millisecond
	samplerBlink = time.Microsecond
	samplerBored = time.Second
)

// sampler finds out what the driver does to a BAR that is plain memory: it looks
// at the registers and at the notify word, on a thread of its own. Workers look
// at the registers too (worker.live); what they find they leave to it.
type sampler struct {
	f     *Function
	regs  *regfile.TrapFree
	bell  *doorbell.Polled   // nil: there is no memory that takes notifications
	mover epc.DoorbellMapper // nil: the doorbell stays where it is
	pace  *doorbell.Pace
	end   atomic.Bool
	ended chan struct{}

	// with mover only
	reset  atomic.Bool // the next driver may find the BARs in another place
	begun  bool        // a driver was there when we last looked
	mapped bool        // its notifications ring
	tried  time.Time   // to map the doorbell

	// several queues only
	settingUp bool // the driver was setting them up when we last looked
	moves     uint64
	moved     time.Time
	blinked   time.Time
	attentive bool // the thread has priority
}

func startSampler(f *Function, regs *regfile.TrapFree, c epc.Controller) *sampler {
	most := ReactionTime
	if f.opts.Queues > 1 {
		most = ReactionTimeQueues
	}
	s := &sampler{
		f: f, regs: regs,
		pace:  doorbell.NewPace(samplerSpin, samplerNap, most),
		ended: make(chan struct{}),
	}
	if f.layout.watched {
		s.bell = doorbell.NewPolled(window(c, f.layout.notify, notifyLen), f.bells...)
	}
	if f.layout.rung {
		s.mover, _ = c.(epc.DoorbellMapper)
	}
	go s.run()
	return s
}

// stop returns when the sampler no longer looks at anything.
func (s *sampler) stop() {
	s.end.Store(true)
	s.f.wake()
	<-s.ended
}

// run is the sampler's goroutine. Its thread sleeps by itself, because the
// runtime's timers are too coarse, and ends with it.
func (s *sampler) run() {
	runtime.LockOSThread()
	defer close(s.ended)
	fds := []unix.PollFd{{Fd: int32(s.f.wakeup.FD()), Events: unix.POLLIN}}
	var rings [8]byte
	for !s.end.Load() {
		wait := s.look()
		if wait == 0 {
			continue
		}
		limit := unix.NsecToTimespec(int64(wait))
		if n, _ := unix.Ppoll(fds, &limit, nil); n > 0 {
			_, _ = unix.Read(s.f.wakeup.FD(), rings[:])
		}
	}
}

// look looks once and returns how long to wait before the next look. Registers
// come first: who is rung must be there.
func (s *sampler) look() time.Duration {
	s.sample()
	now := time.Now()
	s.follow(now)
	wait := s.pace.Next(now, s.bell != nil && s.bell.Poll())
	if s.f.opts.Queues > 1 {
		wait = min(wait, s.attend(now))
	}
	return wait
}

func (s *sampler) sample() {
	if err := s.regs.Sample(); err != nil {
		s.f.log.Error("the device needs a reset", "err", err)
	}
}

// follow has the doorbell mapped when a driver has begun to use the function: by
// then the host has placed the BARs. Until it is, notifications are found in memory.
func (s *sampler) follow(now time.Time) {
	if s.mover == nil {
		return
	}
	was := !s.reset.Swap(false) && s.begun
	s.begun = s.regs.Begun()
	if s.begun && (!was || !s.mapped && now.Sub(s.tried) >= ReactionTime) {
		s.mapped, s.tried = s.mover.MapDoorbell(), now
	}
}

// attend returns how long the sampler may sleep at most so that it misses none of
// several queues. Until they are served there is nothing that its thread could
// keep from running, so it takes precedence.
func (s *sampler) attend(now time.Time) time.Duration {
	watch := s.regs.Epoch() == 0
	if watch != s.attentive {
		s.attentive = watch
		prioritise(watch)
	}
	was := s.settingUp
	var moves uint64
	moves, s.settingUp = s.regs.SettingUp()
	if moves != s.moves || was != s.settingUp {
		s.moves, s.moved = moves, now
	}
	switch {
	case s.settingUp && now.Sub(s.moved) < samplerBored, s.settingUp != was: // also to see what came of it
		if now.Sub(s.blinked) < samplerStare {
			return 0
		}
		s.blinked = now
		return samplerBlink
	case watch:
		return samplerWatch
	}
	return ReactionTimeQueues
}

// prioritise gives this thread precedence over ordinary ones, or takes it away.
// Where that is not permitted, queues may be missed under load: they are counted
// and reported.
func prioritise(on bool) {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	if on {
		attr.Policy, attr.Priority = unix.SCHED_FIFO, 1
	}
	_ = unix.SchedSetAttr(0, &attr, 0)
}

// wake lets the sampler look now. It may be called from any goroutine.
func (f *Function) wake() { f.wakeup.Ring() }
