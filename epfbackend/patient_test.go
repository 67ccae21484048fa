package epfbackend

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
)

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
