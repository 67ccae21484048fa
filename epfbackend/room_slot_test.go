package epfbackend_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
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
