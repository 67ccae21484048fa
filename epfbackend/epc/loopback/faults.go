package loopback

import (
	"sync/atomic"
	"time"
)

// Faults is what goes wrong in a slot. The zero value is a slot where all is
// well. It may be changed at any time.
type Faults struct {
	lend  atomic.Pointer[func(addr uint64) bool]
	move  atomic.Pointer[func(write bool, addr uint64, n int) error]
	delay atomic.Int64 // nanoseconds
	late  atomic.Int64 // refusals to map the doorbell
}

// NoLending says of which regions, by their address, the memory cannot be lent.
// It is asked when a region is mapped.
func (f *Faults) NoLending(of func(addr uint64) bool) { f.lend.Store(&of) }

// Transfers is asked about each transfer to memory that cannot be lent. It may
// take its time, or return an error, which is then the transfer's.
func (f *Faults) Transfers(judge func(write bool, addr uint64, n int) error) { f.move.Store(&judge) }

// DelayInterrupts makes MSI-X interrupts come later.
func (f *Faults) DelayInterrupts(by time.Duration) { f.delay.Store(int64(by)) }

// LateDoorbell makes the slot refuse to map the doorbell that often.
func (f *Faults) LateDoorbell(times int) { f.late.Store(int64(times)) }

func (f *Faults) doorbellLate() bool { return f.late.Add(-1) >= 0 }

func (f *Faults) unlendable(addr uint64) bool {
	of := f.lend.Load()
	return of != nil && (*of)(addr)
}

func (f *Faults) transfer(write bool, addr uint64, n int) error {
	if judge := f.move.Load(); judge != nil {
		return (*judge)(write, addr, n)
	}
	return nil
}

func (f *Faults) interruptDelay() time.Duration { return time.Duration(f.delay.Load()) }
