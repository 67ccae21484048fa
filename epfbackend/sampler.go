package epfbackend

import (
	"runtime"
	"time"

	"github.com/vblk-ep/vblk-ep/doorbell"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
	"github.com/vblk-ep/vblk-ep/internal/shm"
)

const (
	// ReactionTime bounds how long after a driver's write an idle trap-free
	// function notices it, not counting how late the machine's scheduler is.
	ReactionTime = 20 * time.Millisecond

	// After a notification the sampler does not sleep for samplerSpin, and then
	// the longer the longer nothing came, from samplerNap up to ReactionTime.
	samplerSpin = 20 * time.Microsecond
	samplerNap  = 50 * time.Microsecond
)

// sampler finds out what the driver does to a BAR that is plain memory: it looks
// at the registers and at the notify word, on a goroutine of its own. Workers
// look at the registers too (worker.live); what they find they leave to it.
type sampler struct {
	f     *Function
	regs  *regfile.TrapFree
	bell  *doorbell.Polled
	pace  *doorbell.Pace
	end   chan struct{}
	ended chan struct{}
}

func startSampler(f *Function, regs *regfile.TrapFree, bar shm.Window) *sampler {
	s := &sampler{
		f: f, regs: regs,
		pace: doorbell.NewPace(samplerSpin, samplerNap, ReactionTime),
		end:  make(chan struct{}), ended: make(chan struct{}),
	}
	s.bell = doorbell.NewPolled(bar.Slice(notifyOffset, notifyMultiplier), f.bells[0])
	go s.run()
	return s
}

// stop returns when the sampler no longer looks at anything.
func (s *sampler) stop() {
	close(s.end)
	<-s.ended
}

func (s *sampler) run() {
	defer close(s.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		wait := s.look()
		if wait == 0 {
			select {
			case <-s.end:
				return
			default:
				runtime.Gosched()
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-s.end:
			return
		case <-s.f.wakeup:
		case <-timer.C:
		}
	}
}

// look looks once and returns how long to wait before the next look. Registers
// come first: who is rung must be there.
func (s *sampler) look() time.Duration {
	s.sample()
	return s.pace.Next(time.Now(), s.bell.Poll())
}

func (s *sampler) sample() {
	if err := s.regs.Sample(); err != nil {
		s.f.log.Error("the device needs a reset", "err", err)
	}
}

// wake lets the sampler look now. It may be called from any goroutine.
func (f *Function) wake() {
	select {
	case f.wakeup <- struct{}{}:
	default:
	}
}
