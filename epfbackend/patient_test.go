package epfbackend

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// A driver's activation that ends while its host is away ends all that was on the way:
// a header that has not come is not executed, whatever stands in its place.
func TestResetWhileTheHostIsAway(t *testing.T) {
	for _, first := range []error{epc.ErrAway, errors.New("completion timeout")} {
		for looks := range 12 { // of the worker at the registers, until it sees that
			resetWhileAway(t, first, looks)
		}
	}
}

// resetWhileAway has the headers of several requests fail to come, the first time with an
// error and then because the host is away, until it has reset the device.
func resetWhileAway(t *testing.T, first error, looks int) {
	faults := new(loopback.Faults)
	d := newWorld(t, worldSetup{
		link: loopback.Gen3x2, depth: 8, size: 4096, faults: faults,
		kinds: func(*rand.Rand) virtioblk.RequestType { return virtioblk.TypeFlush },
	})
	d.run(8) // so that there are old headers
	f := d.w.f
	regs := &endingRegisters{registers: f.regs, looks: -1}
	f.regs = regs
	headers := d.requests[0].line
	faults.Transfers(func(write bool, addr uint64, _ int) error {
		switch {
		case write || addr < headers:
			return nil
		case regs.looks < 0:
			regs.looks = looks
			return first
		}
		return epc.ErrAway
	})
	for i := range d.requests {
		d.submit(&d.requests[i])
	}
	d.kick()
	before := d.disk.issued
	for !d.w.broken {
		require.True(t, d.w.step())
	}
	for range 4 {
		d.w.step()
	}
	require.Equal(t, before, d.disk.issued, "%v, %d looks", first, looks)
	f.regs = regs.registers
}

// endingRegisters are those of an activation that ends after some looks at it.
type endingRegisters struct {
	registers
	looks int // -1: it does not
}

func (r *endingRegisters) Live(uint64) bool {
	if r.looks > 0 {
		r.looks--
	}
	return r.looks != 0
}

// A host that is away for moments, whatever the worker does, loses no request. Nor does
// a ring end because of a transfer that failed.
func TestHostIsAway(t *testing.T) {
	timeout := errors.New("completion timeout")
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 5))
		faults := new(loopback.Faults)
		s := worldSetup{
			link: loopback.Gen3x2, packed: seed&1 != 0, indirect: seed&2 != 0, kinds: anyKind,
			depth: 16, size: 4096 << (seed % 5), faults: faults,
		}
		s.link.Shuffle = seed + 1
		d := newWorld(t, s)
		// Headers, too, for they move together with what a request writes.
		lowest, highest := d.requests[0].line, d.requests[d.depth-1].addr+uint64(s.size)
		away, failed, last := 0, 0, uint64(0)
		faults.Transfers(func(_ bool, addr uint64, _ int) error {
			data := addr >= lowest && addr < highest
			switch n := rng.IntN(64); {
			case n == 0:
				away++
				return epc.ErrAway
			case n == 1 && !data && addr != last: // the next attempt succeeds
				failed, last = failed+1, addr
				return timeout
			}
			last = 0
			return nil
		})
		d.run(200)
		require.Positive(t, away)
		require.Positive(t, failed)
		require.Zero(t, d.failed)
		faults.Transfers(func(bool, uint64, int) error { return nil })
	}
}
