package loopback

import (
	"fmt"
	"sync"

	"github.com/hashicorp/go-multierror"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/vring"
)

// hostMemory is the host's memory: what the function finds on the map, and what
// lies behind it.
type hostMemory struct {
	faults *Faults
	engine *Engine // nil: none
	table  *epc.Memory

	mu       sync.RWMutex
	mappings map[uint64]mapping // by bus address
}

type mapping struct {
	rc.Region
	*shm.Mapping
}

func (h *hostMemory) init(faults *Faults, engine *Engine) {
	h.faults, h.engine = faults, engine
	h.table = epc.NewMemory(h)
	h.mappings = make(map[uint64]mapping)
}

// add maps the memory behind a region and puts that on the map.
func (h *hostMemory) add(r rc.Region) error {
	m, err := shm.Map(r.FD, r.Offset, int(r.Size), true)
	if err != nil {
		return err
	}
	entry := epc.Region{Addr: r.Addr, Size: r.Size, Mem: m.Bytes(), Readable: true, Writable: !r.ReadOnly}
	if h.engine != nil || h.faults.unlendable(r.Addr) {
		entry.Mem = nil
	}
	if err := h.table.Add(entry); err != nil {
		_ = m.Close()
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mappings[r.Addr] = mapping{r, m}
	return nil
}

// remove takes regions off the map and unmaps them.
func (h *hostMemory) remove(addr, size uint64) error {
	var errs *multierror.Error
	removed := h.table.Remove(addr, size)
	if len(removed) == 0 {
		return fmt.Errorf("unmap [%#x, +%#x): %w", addr, size, vring.ErrUnmapped)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range removed {
		errs = multierror.Append(errs, h.mappings[r.Addr].Close())
		delete(h.mappings, r.Addr)
	}
	return errs.ErrorOrNil()
}

func (h *hostMemory) close() error {
	if len(h.table.Regions()) == 0 {
		return nil
	}
	return h.remove(0, 0)
}

// ReadHost implements epc.Transfer.
func (h *hostMemory) ReadHost(p []byte, addr uint64) error {
	if h.engine != nil {
		h.engine.transfer(false, addr, len(p))
	}
	return h.dma(false, addr, p)
}

// WriteHost implements epc.Transfer.
func (h *hostMemory) WriteHost(p []byte, addr uint64) error {
	if h.engine != nil {
		h.engine.transfer(true, addr, len(p))
		defer h.engine.clock.stepped()
	}
	return h.dma(true, addr, p)
}

// CopyHost implements epc.Copier.
func (h *hostMemory) CopyHost(list []epc.Copy) (err error) {
	for _, c := range list {
		if c.Dir == epc.ToHost {
			err = h.WriteHost(c.Local, c.Addr)
		} else {
			err = h.ReadHost(c.Local, c.Addr)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dma moves a segment in either direction.
func (h *hostMemory) dma(write bool, addr uint64, p []byte) error {
	if err := h.faults.transfer(write, addr, len(p)); err != nil {
		return err
	}
	if write {
		return h.move(addr, len(p), true, func(w shm.Window) { w.Write(0, p) })
	}
	return h.move(addr, len(p), false, func(w shm.Window) { w.Read(p, 0) })
}

// move lets f access the n bytes at addr. Memory whose file was truncated is an
// error, as it would be on a bus.
func (h *hostMemory) move(addr uint64, n int, write bool, f func(w shm.Window)) error {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, m := range h.mappings {
		if off := addr - m.Addr; off < m.Size && uint64(n) <= m.Size-off && !(write && m.ReadOnly) {
			return shm.Guard(func() error {
				f(shm.Of(m.Bytes()[off : off+uint64(n)]))
				return nil
			})
		}
	}
	return fmt.Errorf("transfer at %#x: %w", addr, vring.ErrUnmapped)
}

// quiet returns ErrInUse while the engine has moves in flight.
func (h *hostMemory) quiet() error {
	if h.engine != nil && !h.engine.idle() {
		return ErrInUse
	}
	return nil
}
