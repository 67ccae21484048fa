package vfiouser

import (
	"context"
	"fmt"
	"math"
	"os"
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

	// maxMapped bounds how much of our address space a client may take, in
	// bytes: the rest of the process needs some, too.
	maxMapped = 1 << 44
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
	mapped  uint64 // bytes in mappings and retired
	limit   int    // regions, retired ones included

	changing bool
	quiet    bool        // while changing: nothing uses host memory
	gap      *time.Timer // ends a burst
}

func (h *hostMemory) init(s *session) {
	h.s = s
	h.table = epc.NewMemory(s)
	h.mappings = make(map[uint64]*shm.Mapping)
	h.limit = vfiouser.MaxDMAMaps
}

// beginChange pauses the function, unless a burst is under way.
func (h *hostMemory) beginChange() {
	wait := patience
	if h.changing {
		wait = 0 // it was waited for; now only look
	}
	if !h.changing || !h.quiet {
		ctx, cancel := context.WithTimeout(background, wait)
		defer cancel()
		err := h.s.fn.Pause(ctx)
		if err != nil && !h.changing {
			h.s.log.Warn("host memory changes under requests in flight", "err", err)
		}
		h.quiet = err == nil
	}
	h.changing = true
	h.dropRetired()
	if h.gap != nil {
		h.gap.Reset(burstGap)
		return
	}
	h.gap = time.AfterFunc(burstGap, func() {
		h.s.mu.Lock()
		defer h.s.mu.Unlock()
		h.endChange()
	})
}

// endChange lets the function go on with the memory as it is now.
func (h *hostMemory) endChange() {
	if h.changing {
		h.changing, h.quiet = false, false
		h.gap.Stop()
		h.s.fn.Resume()
	}
}

// dropRetired unmaps what is off the map, if nothing can be using it.
func (h *hostMemory) dropRetired() {
	if !h.quiet {
		return
	}
	for _, m := range h.retired {
		h.unmap(m)
	}
	h.retired = nil
}

func (h *hostMemory) unmap(m *shm.Mapping) {
	h.mapped -= uint64(len(m.Bytes()))
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
	if len(h.table.Regions())+len(h.retired) >= h.limit {
		return fmt.Errorf("more than %d regions: %w", h.limit, syscall.ENOSPC)
	}
	r := epc.Region{
		Addr: m.Addr, Size: m.Size,
		Readable: m.Flags&vfiouser.DMAMapRead != 0, Writable: m.Flags&vfiouser.DMAMapWrite != 0,
	}
	var mapping *shm.Mapping
	if fd >= 0 && (r.Readable || r.Writable) {
		var err error
		if mapping, err = h.mapFile(m, fd, r.Writable); err != nil {
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

// mapFile maps a part of a client's file. The file must be memory or a plain file
// of a local filesystem, and long enough now; the client can still truncate it
// later.
func (h *hostMemory) mapFile(m vfiouser.DMAMap, fd int, write bool) (*shm.Mapping, error) {
	page := uint64(os.Getpagesize())
	if (m.Addr|m.Size|m.Offset)%page != 0 || m.Offset > math.MaxInt64 || m.Size > math.MaxInt64 {
		return nil, fmt.Errorf("memory of %#x bytes at offset %#x of its file: %w", m.Size, m.Offset, syscall.EINVAL)
	}
	if err := local(fd); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("file of host memory: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || m.Offset+m.Size > uint64(st.Size) {
		return nil, fmt.Errorf("memory of %#x bytes at offset %#x is not in its file of %#x bytes: %w",
			m.Size, m.Offset, st.Size, syscall.EINVAL)
	}
	if h.mapped+m.Size > maxMapped {
		return nil, fmt.Errorf("more than %d bytes of host memory: %w", uint64(maxMapped), syscall.ENOMEM)
	}
	mapping, err := shm.Map(fd, int64(m.Offset), int(m.Size), write)
	if err == nil {
		h.mapped += m.Size
	}
	return mapping, err
}

// local refuses files whose content anybody but the kernel could keep from us. A
// page fault that is not answered cannot be interrupted, and the Go runtime would
// wait for its thread, and with it everything in this process.
func local(fd int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("filesystem of host memory: %w", err)
	}
	switch uint32(st.Type) {
	case unix.TMPFS_MAGIC, unix.HUGETLBFS_MAGIC, // memfd, too
		unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC:
		return nil
	}
	return fmt.Errorf("host memory in a file of filesystem %#x, which may not answer: %w", uint32(st.Type), syscall.EINVAL)
}

// remove takes client memory off the map. When it has returned nil, nothing uses
// it, unless the function could not be paused; then its mapping stays for those
// who do.
func (h *hostMemory) remove(m vfiouser.DMAUnmap) error {
	addr, size := m.Addr, m.Size
	if m.Flags&vfiouser.DMAUnmapAll != 0 {
		addr, size = 0, 0
	} else if err := h.whole(addr, size); err != nil {
		return err
	}
	h.beginChange()
	for _, r := range h.table.Remove(addr, size) {
		if mapping := h.mappings[r.Addr]; mapping != nil {
			delete(h.mappings, r.Addr)
			h.retired = append(h.retired, mapping)
		}
	}
	h.dropRetired()
	return nil
}

// whole refuses a range that holds no region, or a part of one.
func (h *hostMemory) whole(addr, size uint64) error {
	found := false
	last := addr + (size - 1)
	for _, r := range h.table.Regions() {
		end := r.Addr + (r.Size - 1)
		if end < addr || r.Addr > last {
			continue
		}
		if r.Addr < addr || end > last {
			return fmt.Errorf("[%#x, +%#x) is mapped together with more: %w", r.Addr, r.Size, syscall.EINVAL)
		}
		found = true
	}
	if !found {
		return fmt.Errorf("nothing is mapped at [%#x, +%#x): %w", addr, size, syscall.ENOENT)
	}
	return nil
}

// release unmaps everything. The function must be detached.
func (h *hostMemory) release() {
	h.table.Remove(0, 0)
	h.quiet = true
	h.dropRetired()
	for _, m := range h.mappings {
		h.unmap(m)
	}
	h.mappings = nil
}
