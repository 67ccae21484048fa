package disktest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
)

// Volatile is a disk in memory with a volatile write cache, whose power can be cut
// at any moment. It promises what a disk promises and nothing more:
//
//   - A block is written as a whole or not at all; what is no whole number of
//     blocks is refused. The blocks of a write reach the cache one by one, in any
//     order, from its start to its end.
//   - What was written is on the medium when a durable operation is done, for that,
//     and when a flush is done, for all that was done before the flush was started.
//   - Everything else may be on the medium or not, each block for itself, in any
//     version that it had since it was last written out.
//
// Operations complete in any order. The disk itself never makes its user wait; what
// is random comes from a seed.
type Volatile struct {
	info disk.Info

	mu     sync.Mutex
	rng    *rand.Rand
	blocks []block
	now    int64 // counts what was done
	cutAt  int64 // steps until the power is cut; below 0: never
	image  []byte
	ended  bool
}

// block is a block's content on the medium, and what the cache has held since.
type block struct {
	stable   []byte
	versions []version
}

type version struct {
	data []byte
	by   int64 // the operation that wrote it
	done int64 // when that was done; 0: it is not
}

// NewVolatile returns a disk with the content given, which is copied, and blocks of
// the given size.
func NewVolatile(content []byte, blockSize uint32, seed uint64) *Volatile {
	limits := disk.RangeLimits{Supported: true, Granularity: blockSize, MaxBytes: int64(len(content))}
	v := &Volatile{
		rng: rand.New(rand.NewPCG(seed, 1)), cutAt: -1,
		info: disk.Info{
			Exclusive: true,
			Path:      "volatile", Kind: disk.Null, Size: int64(len(content)),
			LogicalBlock: blockSize, PhysicalBlock: blockSize, MinIO: blockSize,
			DirectWhy: "it is in memory", Discard: limits, WriteZeroes: limits, SecureErase: limits, Serial: "volatile",
		},
	}
	for b := range slices.Chunk(content, int(blockSize)) {
		v.blocks = append(v.blocks, block{stable: bytes.Clone(b)})
	}
	return v
}

// CutAfter cuts the power after so many steps: what begins, is written to a block or
// ends is a step.
func (v *Volatile) CutAfter(steps int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cutAt = int64(steps)
}

// Cut cuts the power now, if that has not happened. From then on nothing is done
// any more, until End.
func (v *Volatile) Cut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cut()
}

// Dead says whether the power was cut.
func (v *Volatile) Dead() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.image != nil
}

// Image returns what was on the medium when the power was cut; nil if it was not.
func (v *Volatile) Image() []byte {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.image
}

// End lets all operations of a disk without power fail, and Flush do nothing, so that
// who waits for them comes to an end. Their engines must be woken up.
func (v *Volatile) End() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ended = true
}

// cut decides what of the cache has reached the medium: nothing, everything, each
// block for itself, or all up to some moment.
func (v *Volatile) cut() {
	if v.image != nil {
		return
	}
	way, moment := v.rng.IntN(4), v.rng.Int64N(v.now+1)
	v.image = make([]byte, 0, v.info.Size)
	for i := range v.blocks {
		b := &v.blocks[i]
		n := 0 // versions that were written out
		switch way {
		case 1:
			n = len(b.versions)
		case 2:
			n = v.rng.IntN(len(b.versions) + 1)
		case 3:
			n = len(b.versions)
			if k := slices.IndexFunc(b.versions, func(w version) bool { return w.by > moment }); k >= 0 {
				n = k
			}
		}
		data := b.stable
		if n > 0 {
			data = b.versions[n-1].data
		}
		v.image = append(v.image, data...)
	}
}

// step counts, and reports whether there is power.
func (v *Volatile) step() bool {
	if v.cutAt == 0 {
		v.cut()
	}
	if v.cutAt >= 0 {
		v.cutAt--
	}
	v.now++
	return v.image == nil
}

// latest returns what a read returns.
func (b *block) latest() []byte {
	if n := len(b.versions); n > 0 {
		return b.versions[n-1].data
	}
	return b.stable
}

// writeOut writes the cache to the medium up to version n.
func (b *block) writeOut(n int) {
	b.stable = b.versions[n].data
	b.versions = slices.Delete(b.versions, 0, n+1)
}

// Info implements disk.Store.
func (v *Volatile) Info() disk.Info { return v.info }

// Refresh implements disk.Store. The size never changes.
func (v *Volatile) Refresh() (bool, error) { return false, nil }

// Flush implements disk.Store.
func (v *Volatile) Flush() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.ended:
		return nil
	case !v.step():
		return unix.EIO
	}
	v.flush(v.now)
	return nil
}

// flush writes out what was done before a moment.
func (v *Volatile) flush(before int64) {
	for i := range v.blocks {
		b := &v.blocks[i]
		for n := len(b.versions) - 1; n >= 0; n-- {
			if w := &b.versions[n]; w.done > 0 && w.done < before {
				b.writeOut(n)
				break
			}
		}
	}
}

// Close implements disk.Store.
func (v *Volatile) Close() error { return nil }

// NewEngine implements disk.Store.
func (v *Volatile) NewEngine(_ disk.EngineKind, depth, doorbell int) (disk.Engine, error) {
	if depth < 1 || depth > disk.MaxDepth {
		return nil, fmt.Errorf("engine of depth %d: %w", depth, unix.EINVAL)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return &volatileEngine{v: v, doorbell: doorbell, other: -1, rng: rand.New(rand.NewPCG(v.rng.Uint64(), 1))}, nil
}
