package vring

import (
	"encoding/binary"

	"github.com/vblk-ep/vblk-ep/internal/shm"
)

// Push implements Queue.
func (q *Split) Push(c *Chain, written uint32) {
	if q.InFlight() == 0 {
		panic("vring: pushed a chain that is not in flight")
	}
	slot := int(q.pushedIndex) & (q.cfg.Size - 1)
	e := q.batch[slot*usedEntrySize:][:usedEntrySize]
	binary.LittleEndian.PutUint32(e, uint32(c.Head))
	binary.LittleEndian.PutUint32(e[4:], written)
	q.pushedIndex++
	q.journal.push(c, 1)
}

// Publish implements Queue: the entries, then one store of flags and index, then
// one look at what the driver wants.
func (q *Split) Publish() (interrupt bool, err error) {
	if q.pushedIndex == q.publishedIndex && !q.undecided {
		return false, nil
	}
	if q.unresolved != nil {
		return false, q.unresolved
	}
	was := q.publishedIndex
	if err := q.writeBatch(); err != nil {
		return false, err
	}
	if q.undecided { // and not worth another look: an interrupt too many is legal
		q.undecided = false
		return true, nil
	}
	// The driver sets used_event or its flag, and then looks at the used index;
	// one of the two must see the other.
	q.undecided = true
	shm.Fence()
	if interrupt, err = q.wantsInterrupt(was); err != nil {
		return false, err
	}
	q.undecided = false
	return interrupt, nil
}

func (q *Split) writeBatch() error {
	count := int(q.pushedIndex - q.publishedIndex)
	if count == 0 {
		return nil
	}
	q.journal.publishing(q.pushedIndex)
	err := span(q.cfg.Size, q.publishedIndex, count, func(slot, n int) error {
		off := slot * usedEntrySize
		return q.used.post(usedRing+off, q.batch[off:off+n*usedEntrySize], &q.used)
	})
	if err != nil {
		return err
	}
	if err := q.storeUsed(q.pushedIndex, q.suppressed); err != nil {
		return err
	}
	q.publishedIndex = q.pushedIndex
	q.journal.published(q.publishedIndex)
	return nil
}

// storeUsed writes flags and index of the used ring. Both belong to the device
// and share an aligned word, so one store does.
func (q *Split) storeUsed(index uint16, suppress bool) error {
	v := uint32(index) << 16
	if suppress {
		v |= noNotify
	}
	return q.used.store32(usedFlags, v)
}

// wantsInterrupt says whether the driver wants to hear of what was published
// after index was (§2.7.7).
func (q *Split) wantsInterrupt(was uint16) (bool, error) {
	if q.cfg.EventIdx {
		event, err := q.avail.load16(availRing + q.cfg.Size*availEntrySize)
		return needEvent(event, q.publishedIndex, was), err
	}
	flags, err := q.avail.load16(availFlags)
	return flags&noInterrupt == 0, err
}

// needEvent says whether an index that moved from was to now passed event: the
// entry at event is among those added (§2.7.7.2).
func needEvent(event, now, was uint16) bool {
	return now-event-1 < now-was
}

// EnableNotifications implements Queue (§2.7.10).
func (q *Split) EnableNotifications() (more bool, err error) {
	if err := q.unable(); err != nil {
		return false, err
	}
	if q.cfg.EventIdx {
		err = q.storeEvent(q.nextIndex)
	} else if q.suppressed {
		err = q.storeUsed(q.publishedIndex, false)
	}
	if err != nil {
		return false, err
	}
	q.suppressed = false
	// The driver moves the available index, and then looks at avail_event or the
	// flag; one of the two must see the other.
	shm.Fence()
	return q.refresh()
}

// storeEvent writes avail_event: the driver notifies when it passes that index.
func (q *Split) storeEvent(index uint16) error {
	err := q.used.post16(usedRing+q.cfg.Size*usedEntrySize, index, &q.avail)
	if err == nil {
		q.event = index
	}
	return err
}

// eventStale is how far behind avail_event may stay, which is half of how far the
// driver goes before it passes it again.
const eventStale = 1 << 15

// DisableNotifications implements Queue. With EVENT_IDX there is mostly nothing to
// do: the driver will not pass an avail_event that stays behind, until the index
// has come round.
func (q *Split) DisableNotifications() error {
	if q.suppressed || q.cfg.EventIdx && q.nextIndex-q.event < eventStale {
		return nil
	}
	if err := q.unable(); err != nil {
		return err
	}
	if q.cfg.EventIdx {
		return q.storeEvent(q.nextIndex - 1)
	}
	if err := q.storeUsed(q.publishedIndex, true); err != nil {
		return err
	}
	q.suppressed = true
	return nil
}
