package epfbackend

import (
	"errors"
	"fmt"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// This file puts the structures where a controller has room for them. The registers,
// which are memory, share a BAR with the MSI-X table and the pending bits behind it;
// these begin at a page of their own, because a host may map the registers into a
// guest, but never the table. The doorbell is in another BAR if there is one, because
// some controllers cannot have parts of a BAR lead to different places before the
// host has placed it, and lose the BAR whenever the host moves it.
const (
	compactCommon = 0x000
	compactISR    = 0x100
	compactDevice = 0x200
	compactNotify = 0x400
	compactMSIX   = 0x1000

	notifyLen = 4 // all queues share it
)

// ErrRoom says that a controller has no room for the function.
var ErrRoom = errors.New("the endpoint controller has no room for the function")

// fit returns the layout of a trap-free function on a controller.
func fit(r *epc.Room, queues, vectors int) (layout, error) {
	need := uint64(compactMSIX + virtiopci.MSIXTableLen(vectors) + virtiopci.MSIXPBALen(vectors))
	shared := r.Doorbell // what the registers' BAR has to hold, too
	own, separate := ownDoorbell(r, need)
	if separate || !needsRange(r) || !r.SubRanges {
		shared = epc.Doorbell{}
	}
	bar, size, ok := choose(r, need+shared.Size, -1)
	if !ok && shared.Size > 0 {
		shared = epc.Doorbell{}
		bar, size, ok = choose(r, need, -1)
	}
	if !ok {
		return layout{}, fmt.Errorf("%w: %d bytes are needed in one BAR, for %d queues: choose fewer, or another controller", ErrRoom, need, queues)
	}
	l := layout{
		common: place{bar, compactCommon}, isr: place{bar, compactISR},
		device: place{bar, compactDevice}, notify: place{bar, compactNotify}, notifyLen: notifyLen,
		msix: epc.MSIX{
			Vectors: vectors, TableBAR: bar, TableOffset: compactMSIX,
			PBABAR: bar, PBAOffset: uint32(compactMSIX + virtiopci.MSIXTableLen(vectors)),
		},
		watched: true,
	}
	l.bars[bar] = epc.BAR{Size: size, Wide: r.BARs[bar].Wide, Memory: []epc.Area{{Size: size - shared.Size}}}
	switch {
	case r.Doorbell.Kind == epc.NoDoorbell:
	case r.Doorbell.Exposed:
		l.notify, l.rung, l.watched = place{r.Doorbell.BAR, int(r.Doorbell.Offset)}, true, false
	case separate:
		l.addDoorbell(r, own)
	case shared.Size > 0:
		l.bars[bar].Doorbell = epc.Area{Offset: size - shared.Size, Size: shared.Size}
		l.notify, l.rung = place{bar, int(size - shared.Size + r.Doorbell.Offset)}, true
	}
	return l, nil
}

// needsRange says whether there is a doorbell that must be put into a BAR.
func needsRange(r *epc.Room) bool { return r.Doorbell.Kind != epc.NoDoorbell && !r.Doorbell.Exposed }

// addDoorbell gives the doorbell the start of a BAR of its own. What is left of that
// is memory that nobody uses.
func (l *layout) addDoorbell(r *epc.Room, own chosen) {
	b := epc.BAR{Size: own.size, Wide: r.BARs[own.bar].Wide, Doorbell: epc.Area{Size: r.Doorbell.Size}}
	l.watched = own.size > r.Doorbell.Size
	if l.watched {
		b.Memory = []epc.Area{{Offset: r.Doorbell.Size, Size: own.size - r.Doorbell.Size}}
	}
	l.bars[own.bar] = b
	l.notify, l.rung = place{own.bar, int(r.Doorbell.Offset)}, true
}

type chosen struct {
	bar  int
	size uint64
}

// ownDoorbell looks for a BAR for the doorbell beside that of the registers, which
// need bytes. Without sub-ranges it must be as small as the doorbell's range: more
// would show the host what is beside it.
func ownDoorbell(r *epc.Room, need uint64) (chosen, bool) {
	registers, _, ok := choose(r, need, -1)
	if !ok || !needsRange(r) {
		return chosen{}, false
	}
	bar, size, ok := choose(r, r.Doorbell.Size, registers)
	return chosen{bar, size}, ok && (r.SubRanges || size == r.Doorbell.Size)
}

// choose returns the BAR that holds n bytes with the least room to spare, and its
// size; the first of several. What a BAR of 64 bits takes is not there, nor is
// except.
func choose(r *epc.Room, n uint64, except int) (bar int, size uint64, ok bool) {
	taken := [virtiopci.NumBARs + 1]bool{}
	if except >= 0 {
		taken[except], taken[except+1] = true, r.BARs[except].Wide
	}
	for i, p := range r.BARs {
		if !p.Free || taken[i] || p.Wide && (i+1 == len(r.BARs) || taken[i+1]) {
			continue
		}
		s := p.Fixed
		if s == 0 {
			s = powerOfTwo(powerOfTwo(r.Granule, int(p.Least)), int(n))
		}
		if s >= n && (!ok || s < size) {
			bar, size, ok = i, s, true
		}
	}
	return bar, size, ok
}
