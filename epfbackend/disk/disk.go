package disk

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"
)

// Disk is a Store on a block device, a partition or a file.
type Disk struct {
	t    target
	log  *slog.Logger
	told sync.Once // which engine it is

	info Info // without the size, which is in t; never changed after Open

	mu     sync.RWMutex // keeps the descriptors open while it is held
	closed bool
}

var _ Store = (*Disk)(nil)

// Info implements Store.
func (d *Disk) Info() Info {
	info := d.info
	info.Size = d.t.size.Load()
	return info
}

// NewEngine implements Store.
func (d *Disk) NewEngine(kind EngineKind, depth, doorbell int) (Engine, error) {
	if depth < 1 || depth > MaxDepth {
		return nil, fmt.Errorf("engine of depth %d: %w", depth, unix.EINVAL)
	}
	e, refusal, err := d.newEngine(kind, depth, doorbell)
	if err != nil {
		return nil, err
	}
	d.told.Do(func() {
		if refusal != nil {
			d.log.Warn("no io_uring, using plain system calls", "disk", d.info.Path, "err", refusal)
			return
		}
		d.log.Info("disk engine chosen", "engine", e.Name(), "access", d.info.DirectWhy)
	})
	return e, nil
}

// newEngine also returns why the plain engine was taken where any would do.
func (d *Disk) newEngine(kind EngineKind, depth, doorbell int) (e Engine, refusal, err error) {
	if kind != Plain {
		e, err := newUringEngine(&d.t, depth, doorbell)
		if err == nil {
			return e, nil, nil
		}
		if kind == URing {
			return nil, nil, fmt.Errorf("%s: %w", d.info.Path, err)
		}
		refusal = err
	}
	p, err := newPlainEngine(&d.t, depth, doorbell)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", d.info.Path, err)
	}
	return p, refusal, nil
}

// Refresh implements Store. A size that is no multiple of the block size is
// taken to end with the last whole block.
func (d *Disk) Refresh() (changed bool, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return false, unix.EBADF
	}
	size, err := sizeOf(d.t.buffered, d.t.block)
	if err != nil {
		return false, fmt.Errorf("%s: look at the size: %w", d.info.Path, err)
	}
	size -= size % int64(d.info.LogicalBlock)
	return d.t.size.Swap(size) != size, nil
}

// Flush implements Store.
func (d *Disk) Flush() error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.closed {
		return unix.EBADF
	}
	if d.t.readOnly {
		return nil
	}
	if err := unix.Fdatasync(d.t.buffered); err != nil {
		return fmt.Errorf("%s: flush: %w", d.info.Path, err)
	}
	return nil
}

// Close implements Store.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	var errs []error
	if d.t.direct >= 0 {
		errs = append(errs, unix.Close(d.t.direct))
	}
	errs = append(errs, unix.Close(d.t.buffered))
	return errors.Join(errs...)
}

// sizeOf returns the size of an open disk in bytes.
func sizeOf(fd int, block bool) (int64, error) {
	if block {
		n, err := unix.IoctlGetInt(fd, unix.BLKGETSIZE64)
		return int64(n), err
	}
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Size, err
}
