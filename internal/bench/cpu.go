package bench

import (
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A processor-time clock's number is made of the id of a process or a thread, as
// clock_getcpuclockid(3) does it. Unlike what /proc tells it counts nanoseconds,
// which matters in runs of a second, and what ended threads took.
const (
	clockSched     = 2
	clockPerThread = 4
)

func processClock(pid int) int32 { return int32(^pid)<<3 | clockSched }

func threadClock(tid int) int32 { return int32(^tid)<<3 | clockPerThread | clockSched }

// cpuTime reads a processor-time clock.
func cpuTime(clock int32) (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("read a processor-time clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// ProcessTime returns the processor time that a process has used until now.
func ProcessTime(pid int) (time.Duration, error) { return cpuTime(processClock(pid)) }

// usage is what both sides have used of the processors until now.
type usage struct {
	client, server time.Duration
	serverKnown    bool
}

// usageOf reads the clocks. When the server is a part of this process, the client
// is the lanes' threads, and the server everything else.
func usageOf(server int, lanes []*lane) (u usage, err error) {
	own, err := cpuTime(processClock(os.Getpid()))
	if err != nil {
		return u, err
	}
	u.client = own
	switch server {
	case 0:
		return u, nil
	case os.Getpid():
		u.client = 0
		for _, l := range lanes {
			t, err := cpuTime(threadClock(l.tid))
			if err != nil {
				return u, err
			}
			u.client += t
		}
		u.server, u.serverKnown = own-u.client, true
		return u, nil
	}
	// A server that has gone is noticed elsewhere.
	u.server, err = cpuTime(processClock(server))
	u.serverKnown = err == nil
	return u, nil
}

// pin ties the calling thread to a processor.
func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("run on processor %d: %w", cpu, err)
	}
	return nil
}

// rng is a small generator of random numbers (splitmix64).
type rng struct{ s uint64 }

func newRNG(seed uint64, lane int) rng {
	return rng{rand.NewPCG(seed, uint64(lane)).Uint64()}
}

func (r *rng) next() uint64 {
	r.s += 0x9e3779b97f4a7c15
	return mix(r.s)
}

// mix spreads the bits of x.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
