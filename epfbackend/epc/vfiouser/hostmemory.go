package vfiouser

import (
	"context"
	"fmt"
	"math"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

const (
	// burstGap is how long after a change of host memory the next one may come
	// and still belong to it.
	burstGap = 10 * time.Millisecond

	maxRegions = 65535
)

// hostMemory is the client's memory, as it maps and unmaps it.
//
// Clients change their memory in bursts: QEMU takes all of it away and maps it
// again while firmware runs with a live queue. The function is paused at the
// first change, and goes on when anything else happens, or nothing for a moment.
// Its methods are called with the session locked.
type hostMemory struct {
	s     *session
	table *epc.Memory

	mappings map[uint64]*shm.Mapping // by bus address
	// retired mappings are off the map, but a request that could not be waited
	// for may still use them.
	retired []*shm.Mapping

	changing bool
	gap      *time.Timer // ends a burst
}

func (h *hostMemory) init(s *session) {
	h.s = s
	h.table = epc.NewMemory(s)
	h.mappings = make(map[uint64]*shm.Mapping)
}

// beginChange pauses the function, unless a burst is under way.
func (h *hostMemory) beginChange() {
	if h.changing {
		h.gap.Reset(burstGap)
		return
	}
	h.changing = true
	ctx, cancel := context.WithTimeout(background, patience)
	defer cancel()
	if err := h.s.fn.Pause(ctx); err != nil {
		h.s.log.Warn("host memory changes under requests in flight", "err", err)
	}
	if h.gap == nil {
		h.gap = time.AfterFunc(burstGap, func() {
			h.s.mu.Lock()
			defer h.s.mu.Unlock()
			h.endChange()
		})
	} else {
		h.gap.Reset(burstGap)
	}
}

// endChange lets the function go on with the memory as it is now.
func (h *hostMemory) endChange() {
	if h.changing {
		h.changing = false
		h.gap.Stop()
		h.s.fn.Resume()
	}
}

func (h *hostMemory) dropRetired() {
	for _, m := range h.retired {
		h.unmap(m)
	}
	h.retired = nil
}

func (h *hostMemory) unmap(m *shm.Mapping) {
	if err := m.Close(); err != nil {
		h.s.log.Warn("host memory not unmapped", "err", err)
	}
}

// add puts client memory on the map. It owns fd, -1 if the memory can only be
// reached by messages.
func (h *hostMemory) add(m vfiouser.DMAMap, fd int) error {
	if fd >= 0 {
		defer unix.Close(fd)
	}
	if len(h.table.Regions()) >= maxRegions {
		return fmt.Errorf("more than %d regions: %w", maxRegions, syscall.ENOSPC)
	}
	r := epc.Region{
		Addr: m.Addr, Size: m.Size,
		Readable: m.Flags&vfiouser.DMAMapRead != 0, Writable: m.Flags&vfiouser.DMAMapWrite != 0,
	}
	var mapping *shm.Mapping
	if fd >= 0 && (r.Readable || r.Writable) {
		if m.Offset > math.MaxInt64 || m.Size > math.MaxInt64 {
			return fmt.Errorf("memory of %d bytes at offset %#x of its file: %w", m.Size, m.Offset, syscall.EINVAL)
		}
		var err error
		if mapping, err = shm.Map(fd, int64(m.Offset), int(m.Size), r.Writable); err != nil {
			return err
		}
		r.Mem = mapping.Bytes()
	}
	h.beginChange()
	if err := h.table.Add(r); err != nil {
		if mapping != nil {
			h.unmap(mapping)
		}
		return fmt.Errorf("%w: %w", err, syscall.EEXIST)
	}
	if mapping != nil {
		h.mappings[r.Addr] = mapping
	}
	return nil
}

// remove takes client memory off the map.
func (h *hostMemory) remove(m vfiouser.DMAUnmap) error {
	addr, size := m.Addr, m.Size
	if m.Flags&vfiouser.DMAUnmapAll != 0 {
		addr, size = 0, 0
	}
	h.beginChange()
	removed := h.table.Remove(addr, size)
	if len(removed) == 0 && m.Flags&vfiouser.DMAUnmapAll == 0 {
		return fmt.Errorf("nothing is mapped at [%#x, +%#x): %w", addr, size, syscall.ENOENT)
	}
	for _, r := range removed {
		if mapping := h.mappings[r.Addr]; mapping != nil {
			delete(h.mappings, r.Addr)
			h.retired = append(h.retired, mapping)
		}
	}
	// Asked once more, without a wait: only what nobody uses is unmapped.
	ctx, cancel := context.WithTimeout(background, 0)
	defer cancel()
	if h.s.fn.Pause(ctx) == nil {
		h.dropRetired()
	}
	return nil
}

// release unmaps everything. The function must be detached.
func (h *hostMemory) release() {
	h.table.Remove(0, 0)
	h.dropRetired()
	for _, m := range h.mappings {
		h.unmap(m)
	}
	h.mappings = nil
}
