package epfbackend_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// roomy is a setup on a controller with a doorbell for each queue.
func roomy(least uint64) setup {
	room := &epc.Room{
		Granule: 4096, SubRanges: true,
		Doorbell: epc.Doorbell{Kind: epc.DoorbellEach, Offset: 0x40, Size: 4096},
	}
	for i := range room.BARs {
		room.BARs[i] = epc.Place{Free: true, Least: least}
	}
	return trapFree(setup{options: epfbackend.Options{Room: room}})
}

// Notifications arrive as interrupts, as soon as the doorbell is where the host has
// placed its BAR.
func TestDoorbellOfAController(t *testing.T) {
	for name, s := range map[string]setup{"page": roomy(0), "part of a BAR": roomy(1 << 20)} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, s)
			for range 3 {
				roundTrips(r)
				r.revive()
			}
			require.NotZero(t, r.q.Kicks())
		})
	}
}

// A host whose end was told late, when its next driver was ready already, is served, and
// the doorbell mapped again.
func TestHostIsBackBeforeItsEndIsTold(t *testing.T) {
	r := newRig(t, roomy(1<<20))
	for range 3 {
		roundTrips(r)
		require.True(t, r.slot.Rings())
		read := func() {
			require.NoError(t, r.dev.Close())
			var err error
			r.dev, err = rc.Open(r.slot)
			require.NoError(t, err)
			r.start()
			require.NoError(t, r.q.Submit(r.request(sector)))
			require.NoError(t, r.q.Kick())
			_, err = r.q.Wait(nil, 3*epfbackend.ReactionTime)
			require.ErrorIs(t, err, rc.ErrTimeout, "who is there may be of before")
		}
		require.NoError(t, r.slot.ResetToldLate(read))
		done, err := r.q.Wait(nil, patience)
		require.NoError(t, err)
		require.Len(t, done, 1)
		require.Eventually(t, r.slot.Rings, patience, time.Millisecond)
	}
}

// What waits for a host that is away does not go on with the next one, whose memory it does
// not know.
func TestHostIsBackInTheMiddleOfRequests(t *testing.T) {
	for name, link := range map[string]*loopback.Link{"transfers": nil, "moves": shuffled(3)} {
		t.Run(name, func(t *testing.T) {
			var away atomic.Bool
			var tried atomic.Int64
			s := roomy(1 << 20)
			s.link, s.faults = link, transfersOnly()
			s.faults.Transfers(func(bool, uint64, int) error {
				tried.Add(1)
				if away.Load() {
					return epc.ErrAway
				}
				return nil
			})
			r := newRig(t, s)
			roundTrips(r)
			away.Store(true)
			before := tried.Load()
			for range 8 {
				require.NoError(t, r.q.Submit(r.request(64<<10)))
			}
			require.NoError(t, r.q.Kick())
			require.Eventually(t, func() bool { return tried.Load() > before+20 }, patience, time.Millisecond)
			require.NoError(t, r.slot.ResetToldLate(func() {
				time.Sleep(20 * time.Millisecond) // what is being tried has failed
				away.Store(false)
				before = tried.Load()
				time.Sleep(50 * time.Millisecond)
				require.Equal(t, before, tried.Load(), "the memory of a host that is not ours")
			}))
			require.NoError(t, r.dev.Close())
			var err error
			r.dev, err = rc.Open(r.slot)
			require.NoError(t, err)
			r.start()
			roundTrips(r)
		})
	}
}

// Until the doorbell is mapped, notifications are found in memory.
func TestDoorbellThatComesLate(t *testing.T) {
	s := roomy(1 << 20)
	s.faults = new(loopback.Faults)
	s.faults.LateDoorbell(1 << 30)
	r := newRig(t, s)
	read := func() { r.must(virtioblk.TypeIn, 0, make([]byte, sector)) }
	for range 3 {
		time.Sleep(2 * epfbackend.ReactionTime)
		read()
	}
	s.faults.LateDoorbell(0)
	time.Sleep(3 * epfbackend.ReactionTime)
	read()
	r.revive()
}
