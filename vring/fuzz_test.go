package vring_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// FuzzSplit lets arbitrary bytes be a ring: its place, its size, what lies in it.
// Whatever they say, the device must stay within its bounds, and must understand
// the same whether memory is lent or transferred.
//
// The first five bytes choose features, size, start and the places of the areas
// in 4 KiB of memory; the rest is that memory.
func FuzzSplit(f *testing.F) {
	for _, seed := range fuzzSplitSeeds(f) {
		f.Add(seed)
	}
	fuzzRing(f, false, fuzzSplitConfig)
}

// FuzzPacked is the same with a packed ring, with one byte more for its size.
func FuzzPacked(f *testing.F) {
	for _, seed := range fuzzPackedSeeds(f) {
		f.Add(seed)
	}
	fuzzRing(f, true, fuzzPackedConfig)
}

const (
	fuzzBase = 0x1000
	fuzzSize = 0x1000
	fuzzUsed = 0x10000 // out of the way of what the driver writes
)

func fuzzSplitConfig(data []byte) (cfg vring.Config, content []byte, ok bool) {
	if len(data) < 5 {
		return cfg, nil, false
	}
	return vring.Config{
		Size:     1 << (data[0] >> 2 & 7),
		EventIdx: data[0]&1 != 0,
		Indirect: data[0]&2 != 0,
		MaxChain: int(data[1]),
		Desc:     fuzzBase + uint64(data[2])<<4,
		Driver:   fuzzBase + uint64(data[3])<<1,
		Device:   fuzzUsed,
		Start:    uint16(int8(data[4])),
	}, data[5:], true
}

func fuzzPackedConfig(data []byte) (cfg vring.Config, content []byte, ok bool) {
	if len(data) < 6 {
		return cfg, nil, false
	}
	return vring.Config{
		Size:     1 + int(data[5]),
		EventIdx: data[0]&1 != 0,
		Indirect: data[0]&2 != 0,
		MaxChain: int(data[1]),
		Desc:     fuzzBase + uint64(data[2])<<4,
		Driver:   fuzzBase + uint64(data[3])<<2,
		Device:   fuzzUsed,
		Start:    uint16(data[0])>>2<<15 | uint16(data[4]),
	}, data[6:], true
}

func fuzzRing(f *testing.F, packed bool, parse func(data []byte) (vring.Config, []byte, bool)) {
	mem := newMemory(f, vringtest.Range{Base: fuzzBase, Size: fuzzSize},
		vringtest.Range{Base: fuzzUsed, Size: fuzzSize})
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, content, ok := parse(data)
		if !ok {
			return
		}
		ram := mem.Bytes(fuzzBase, fuzzSize)
		clear(ram)
		copy(ram, content)
		mem.TransfersOnly(false)
		lent, err := newQueue(mem, packed, cfg)
		if err != nil {
			return
		}
		mem.TransfersOnly(true)
		moved, err := newQueue(mem, packed, cfg)
		require.NoError(t, err)
		b := &fuzzPair{t, mem, cfg, packed, lent, moved, 0}
		for range 3 { // what the device wrote is a ring as well
			b.once()
		}
	})
}

// fuzzPair is two queues on the same ring, one by lent memory and one by
// transfers.
type fuzzPair struct {
	t           *testing.T
	mem         *vringtest.Memory
	cfg         vring.Config
	packed      bool
	lent, moved vring.Queue
	total       int // chains of each
}

func (p *fuzzPair) once() {
	a := p.fetch(p.lent)
	b := p.fetch(p.moved)
	require.Equal(p.t, a.errs, b.errs)
	require.Len(p.t, b.chains, len(a.chains))
	for i := range a.chains {
		require.Equal(p.t, a.chains[i].Head, b.chains[i].Head)
		require.Equal(p.t, a.chains[i].Readable, b.chains[i].Readable)
		require.Equal(p.t, a.chains[i].Writable, b.chains[i].Writable)
		fuzzChain(p.t, p.packed, p.cfg, &a.chains[i])
	}
	p.total += len(a.chains)
	before := p.memory()
	saidA := p.giveBack(p.lent, a.chains)
	after := p.memory()
	copy(p.mem.Bytes(fuzzBase, fuzzSize), before[0])
	copy(p.mem.Bytes(fuzzUsed, fuzzSize), before[1])
	require.Equal(p.t, saidA, p.giveBack(p.moved, b.chains))
	require.Equal(p.t, after, p.memory())
}

func (p *fuzzPair) memory() (parts [2][]byte) {
	return [2][]byte{
		append([]byte(nil), p.mem.Bytes(fuzzBase, fuzzSize)...),
		append([]byte(nil), p.mem.Bytes(fuzzUsed, fuzzSize)...),
	}
}

type fuzzFetched struct {
	chains []vring.Chain
	errs   []error
}

// fetch takes all there is. A split ring cannot have more than its size, and
// neither can a packed one while nothing is given back.
func (p *fuzzPair) fetch(q vring.Queue) (f fuzzFetched) {
	p.mem.TransfersOnly(q == p.moved)
	for {
		var c vring.Chain
		ok, err := q.Next(&c)
		f.errs = append(f.errs, cause(err))
		if !ok {
			require.Equal(p.t, len(f.chains), q.InFlight())
			return f
		}
		f.chains = append(f.chains, c)
		require.LessOrEqual(p.t, len(f.chains), p.cfg.Size)
	}
}

func (p *fuzzPair) giveBack(q vring.Queue, chains []vring.Chain) (said []any) {
	p.mem.TransfersOnly(q == p.moved)
	for i := range chains {
		q.Push(&chains[len(chains)-1-i], uint32(i))
	}
	require.Zero(p.t, q.InFlight())
	interrupt, err := q.Publish()
	said = append(said, interrupt, cause(err))
	if !p.packed && err == nil && len(chains) > 0 {
		require.Equal(p.t, p.cfg.Start+uint16(p.total), p.mem.Window(fuzzUsed, 4).Load16(2))
	}
	more, err := q.EnableNotifications()
	said = append(said, more, cause(err))
	return append(said, cause(q.DisableNotifications()))
}

func fuzzChain(t *testing.T, packed bool, cfg vring.Config, c *vring.Chain) {
	limit := cfg.MaxChain
	if limit == 0 {
		limit = cfg.Size
	}
	if !packed {
		require.Less(t, int(c.Head), cfg.Size)
	}
	require.LessOrEqual(t, len(c.Readable)+len(c.Writable), limit)
	for _, list := range [][]vring.Segment{c.Readable, c.Writable} {
		for _, s := range list {
			require.NotZero(t, s.Len)
			require.Greater(t, s.Addr+uint64(s.Len), s.Addr)
		}
	}
}

// cause returns the sentinel in err.
func cause(err error) error {
	var m vring.Malformed
	switch {
	case errors.As(err, &m):
		return m
	case errors.Is(err, vring.ErrUnmapped):
		return vring.ErrUnmapped
	}
	return err
}

// fuzzSplitSeeds returns good rings and one for each malformed thing.
func fuzzSplitSeeds(f *testing.F) (seeds [][]byte) {
	for bits := range byte(4) {
		for _, c := range malformedSplit {
			r := fuzzRig(f, vringtest.Config{Size: 8, Indirect: 8})
			if bits&2 == 0 {
				c.do(r.split())
			}
			cfg := r.drv.Queue()
			head := []byte{bits | 3<<2, 8, byte((cfg.Desc - fuzzBase) >> 4), byte((cfg.Driver - fuzzBase) >> 1), 0}
			seeds = append(seeds, append(head, r.mem.Bytes(fuzzBase, 2048)...))
		}
	}
	return seeds
}

func fuzzPackedSeeds(f *testing.F) (seeds [][]byte) {
	for bits := range byte(8) {
		for _, c := range malformedPacked {
			start := uint16(bits>>2) << 15
			r := fuzzRig(f, vringtest.Config{Packed: true, Size: 8, Indirect: 8, Start: start | 5})
			if bits&2 == 0 {
				c.do(r.packed())
			}
			cfg := r.drv.Queue()
			head := []byte{bits, 8, byte((cfg.Desc - fuzzBase) >> 4), byte((cfg.Driver - fuzzBase) >> 2), 5, 7}
			if bits&2 == 0 {
				head[4] = 1 // where the malformed thing is
			}
			seeds = append(seeds, append(head, r.mem.Bytes(fuzzBase, 2048)...))
		}
	}
	return seeds
}

// fuzzRig is a ring with a direct chain and an indirect one.
func fuzzRig(f *testing.F, cfg vringtest.Config) *rig {
	r := rigIn(f, newMemory(f, vringtest.Range{Base: fuzzBase, Size: fuzzSize}), cfg)
	r.add(f, segs(seg(0x1000, 16)), segs(seg(0x2000, 1)))
	_, err := r.drv.AddIndirect(segs(seg(0x1000, 16)), segs(seg(0x2000, 1)))
	require.NoError(f, err)
	r.drv.Kick()
	return r
}
