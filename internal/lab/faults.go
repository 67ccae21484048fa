package lab

import "sync/atomic"

// stats count what went over the link.
type stats struct {
	inboundReads, inboundWrites, posted atomic.Uint64
	outboundReads, outboundWrites       atomic.Uint64
	registerReads, registerWrites       atomic.Uint64
	dmaTransfers, dmaBytes              atomic.Uint64
	dmaInterrupts, interrupts           atomic.Uint64
	doorbells                           atomic.Uint64
	injected                            atomic.Int64 // transfers that are still to fail
}

// Stats is what went over the link since the lab was made.
type Stats struct {
	InboundReads   uint64 // accesses of the RC that were trapped
	InboundWrites  uint64
	Posted         uint64 // of those, writes forwarded as messages
	OutboundReads  uint64 // accesses of the endpoint's processor
	OutboundWrites uint64
	RegisterReads  uint64 // of the controller
	RegisterWrites uint64
	DMATransfers   uint64 // descriptors
	DMABytes       uint64
	DMAInterrupts  uint64 // to the endpoint
	Interrupts     uint64 // to the RC, of all kinds
	Doorbells      uint64 // writes of the controller's doorbell
}

// Stats returns the counters as they are now.
func (l *Lab) Stats() Stats {
	s := &l.stats
	return Stats{
		InboundReads: s.inboundReads.Load(), InboundWrites: s.inboundWrites.Load(), Posted: s.posted.Load(),
		OutboundReads: s.outboundReads.Load(), OutboundWrites: s.outboundWrites.Load(),
		RegisterReads: s.registerReads.Load(), RegisterWrites: s.registerWrites.Load(),
		DMATransfers: s.dmaTransfers.Load(), DMABytes: s.dmaBytes.Load(),
		DMAInterrupts: s.dmaInterrupts.Load(), Interrupts: s.interrupts.Load(),
		Doorbells: s.doorbells.Load(),
	}
}

// DropLink takes the link down, or lets it come back, as a cable would. The
// function stays plugged in.
func (l *Lab) DropLink(drop bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped = drop
	l.train()
}

// StallDMA makes all channels stand still, or go on.
func (l *Lab) StallDMA(stall bool) {
	for n := range l.channels {
		c := &l.channels[n]
		c.mu.Lock()
		c.stalled = stall
		c.changed.Broadcast()
		c.mu.Unlock()
	}
}

// FailDMA makes the next n transfers fail.
func (l *Lab) FailDMA(n int) { l.stats.injected.Store(int64(n)) }

func (l *Lab) injectError() bool {
	for {
		n := l.stats.injected.Load()
		if n <= 0 {
			return false
		}
		if l.stats.injected.CompareAndSwap(n, n-1) {
			return true
		}
	}
}
