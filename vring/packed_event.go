package vring

import "github.com/vblk-ep/vblk-ep/internal/shm"

// An event suppression structure (§2.8.14) is a position and flags of 16 bits
// each, and is accessed as the one aligned word that it is, so that the two
// belong together.
const (
	eventSize  = 4
	eventShift = 16 // of the flags

	eventEnable  = 0
	eventDisable = 1
	eventDesc    = 2 // when the descriptor at the position is passed
	eventMask    = 3 // the other bits are reserved

	// toldNothing is no valid structure: what the driver sees is unknown.
	toldNothing = 1<<32 - 1
)

// wantsInterrupt says whether the driver wants to hear of what was published
// after position was. Flags that it may not have mean that it does: an interrupt too
// many is legal, one too few is not. But a position that is not in the ring is never
// passed.
func (q *Packed) wantsInterrupt(was int) (bool, error) {
	v, err := q.driver.load32(0)
	if err != nil {
		return false, err
	}
	switch v >> eventShift & eventMask {
	case eventDisable:
		return false, nil
	case eventDesc:
		if q.cfg.EventIdx {
			event := q.ring.decode(uint16(v))
			return q.ring.between(was, event) < q.ring.between(was, q.published), nil
		}
	}
	return true, nil
}

// EnableNotifications implements Queue (§2.8.10).
func (q *Packed) EnableNotifications() (more bool, err error) {
	if err := q.unable(); err != nil {
		return false, err
	}
	event := uint32(eventEnable << eventShift)
	if q.cfg.EventIdx {
		event = eventDesc<<eventShift | uint32(q.ring.encode(q.next))
	}
	if err := q.tell(event); err != nil {
		return false, err
	}
	// The driver writes the flags of the descriptor, and then looks at the event
	// structure; one of the two must see the other.
	shm.Fence()
	return q.more()
}

// DisableNotifications implements Queue. With EVENT_IDX the structure is left
// alone while it names a descriptor of the last lap: the driver has passed that
// one, and comes to it again after two.
func (q *Packed) DisableNotifications() error {
	const disable = eventDisable << eventShift
	if q.told == disable {
		return nil
	}
	if q.told>>eventShift == eventDesc && q.ring.between(q.ring.decode(uint16(q.told)), q.next) < q.ring.size {
		return nil
	}
	if err := q.unable(); err != nil {
		return err
	}
	return q.tell(disable)
}

func (q *Packed) tell(event uint32) error {
	if event == q.told {
		return nil
	}
	if err := q.device.post32(0, event, &q.ring.area); err != nil {
		return err
	}
	q.told = event
	return nil
}
