package epfbackend_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// What a hostile driver has at hand: memory for rings and buffers, memory that
// the device may only read, and nothing in between.
const (
	fuzzBase  = 0x10000
	fuzzSize  = 256 << 10
	romBase   = 0x10_0000
	romSize   = 16 << 10
	fuzzSlots = 16 // size of the ring
	fuzzDisk  = 1 << 20
)

// script is what a hostile driver does, byte by byte.
type script struct{ b []byte }

func (s *script) u8() (v uint8) {
	if len(s.b) > 0 {
		v, s.b = s.b[0], s.b[1:]
	}
	return v
}

func (s *script) u16() uint16 { return uint16(s.u8()) | uint16(s.u8())<<8 }

// addr is an address that is likely to mean something.
func (s *script) addr() uint64 {
	off := uint64(s.u16())
	switch s.u8() % 8 {
	case 0:
		return romBase + off%romSize
	case 1:
		return fuzzBase + fuzzSize - off%64 // over the end
	case 2:
		return ^uint64(0) - off
	case 3:
		return off << 32
	}
	return fuzzBase + fuzzSize/2 + off
}

// length is one that is likely to fit.
func (s *script) length() uint32 {
	n := uint32(s.u8())
	switch s.u8() % 8 {
	case 0:
		return n << 24
	case 1:
		return n << 9
	case 2:
		return 16
	case 3:
		return 1
	case 4:
		return sector
	case 5:
		return n * 16
	}
	return n
}

// hostile runs a script against a live queue, which has indirect tables or not.
func (r *rig) hostile(s *script, indirect bool) {
	for n := 0; n < 200 && len(s.b) > 0; n++ {
		switch s.u8() % 10 {
		case 0, 1:
			r.q.SetDesc(uint16(s.u8()%fuzzSlots), s.addr(), s.length(), uint16(s.u8()%8), uint16(s.u8()%(fuzzSlots+1)))
		case 2:
			owner, i, addr, n, flags, next := s.u8()%fuzzSlots, s.u8()%8, s.addr(), s.length(), s.u8()%8, s.u8()%9
			if indirect {
				r.q.SetTableDesc(uint16(owner), uint16(i), addr, n, uint16(flags), uint16(next))
			}
		case 3: // refer to that
			i := uint16(s.u8() % fuzzSlots)
			r.q.SetDesc(i, r.q.Table(i), uint32(s.u8()%9)*16, vringtest.FlagIndirect, 0)
		case 4: // a header, somewhere
			b := r.mem.Bytes(fuzzBase+fuzzSize/2+uint64(s.u16()), virtioblk.HeaderLen)
			if len(b) == virtioblk.HeaderLen {
				h := virtioblk.Header{Type: virtioblk.RequestType(s.u8() % 16), Sector: uint64(s.u16())}
				h.Encode(b)
			}
		case 5: // anything, anywhere
			b := r.mem.Bytes(fuzzBase+uint64(s.u16())*4, 16)
			copy(b, s.b[:min(len(s.b), int(s.u8()%16))])
		case 6:
			r.q.SetAvail(uint16(s.u8()), uint16(s.u8()%(fuzzSlots+1)))
		case 7:
			r.q.SetAvailIndex(r.q.UsedIndex() + uint16(s.u8()%(fuzzSlots+2)))
			require.NoError(r.t, r.q.Notify())
		case 8:
			if s.u8()%4 == 0 {
				require.NoError(r.t, rc.UnmapMemory(r.slot, r.mem))
				require.NoError(r.t, rc.MapMemory(r.slot, r.mem))
			}
		case 9:
			if s.u8()%8 == 0 {
				require.NoError(r.t, r.dev.ResetQueue(0))
				require.NoError(r.t, r.dev.EnableQueue(0, r.q.Queue(), 1))
			}
		}
	}
	require.NoError(r.t, r.q.Notify())
}

// fuzzOnce lets a script loose on the device with fresh guest memory, and then
// makes sure that a reset of the queue mends everything, or one of the device if it
// has asked for that: a request that is well formed is answered, whatever it is.
func fuzzOnce(t *testing.T, r *rig, faults *loopback.Faults, data []byte) {
	var err error
	r.t = t
	r.mem, err = vringtest.NewMemory(
		vringtest.Range{Base: fuzzBase, Size: fuzzSize}, vringtest.Range{Base: romBase, Size: romSize, ReadOnly: true})
	require.NoError(t, err)
	rom := pattern(romSize, 1)
	copy(r.mem.Bytes(romBase, romSize), rom)

	s := &script{data}
	mode := s.u8()
	kind, readable, writable := virtioblk.RequestType(s.u8()%16), s.length(), s.length()
	faults.NoLending(func(uint64) bool { return mode&1 != 0 })
	r.refuse = nil
	if mode&2 != 0 {
		r.refuse = append(r.refuse, virtio.EventIdx)
	}
	indirect := mode&4 == 0
	if !indirect {
		r.refuse = append(r.refuse, virtio.IndirectDesc)
	}
	require.NoError(t, rc.MapMemory(r.slot, r.mem))
	// Also after a failure: the engine runs a failing input again, on this device,
	// and must meet the same error and not what the first run left behind.
	defer func() {
		assert.NoError(t, r.dev.Reset())
		assert.NoError(t, rc.UnmapMemory(r.slot, r.mem))
		assert.NoError(t, r.mem.Close())
	}()
	r.queue = rc.QueueConfig{Size: fuzzSlots, Indirect: 8}
	r.start()
	r.hostile(s, indirect)

	require.NoError(t, r.q.Renew())
	require.True(t, bytes.Equal(rom, r.mem.Bytes(romBase, romSize)), "the device wrote into what it may only read")
	status, err := r.dev.Status()
	require.NoError(t, err)
	if status.Has(virtio.NeedsReset) {
		r.start()
	}
	r.wellFormed(kind, readable, writable)
	r.alive()
}

// wellFormed makes a request with a buffer each way, of any length. It is answered, and
// what the device may only read stays as it is.
func (r *rig) wellFormed(kind virtioblk.RequestType, readable, writable uint32) {
	const most = 8192
	q := r.request(2 * most)
	q.Type = kind
	mine := pattern(most, byte(kind))
	copy(q.Data(), mine)
	in := []vring.Segment{{Addr: q.HeaderAddr(), Len: virtioblk.HeaderLen}}
	if readable > 0 {
		in = append(in, vring.Segment{Addr: q.DataAddr(), Len: min(readable, most)})
	}
	var out []vring.Segment
	if writable > 0 {
		out = append(out, vring.Segment{Addr: q.DataAddr() + most, Len: min(writable, most)})
	}
	out = append(out, vring.Segment{Addr: q.StatusAddr(), Len: virtioblk.StatusLen})
	require.NoError(r.t, r.q.SubmitChain(q, in, out))
	status, err := r.q.Finish(q)
	require.NoError(r.t, err)
	require.LessOrEqual(r.t, status, virtioblk.StatusUnsupp)
	require.True(r.t, bytes.Equal(mine, q.Data()[:most]), "the device wrote into what it may only read")
}

// Hostile chains through a whole function: it never crashes, hangs, or touches
// what is not its, and a reset mends everything.
func FuzzRequests(f *testing.F) { fuzzRequests(f, nil) }

// FuzzRequestsByDMA is FuzzRequests with all of the host's memory behind a DMA engine.
func FuzzRequestsByDMA(f *testing.F) { fuzzRequests(f, shuffled(15)) }

func fuzzRequests(f *testing.F, link *loopback.Link) {
	for mode := range byte(8) {
		for i, seed := range fuzzSeeds() {
			n := byte(i)
			f.Add(append([]byte{mode, n, n, 1, n / 2, 5}, seed...)) // a request of n sectors, and n / 2 times 16 bytes
		}
	}
	faults := new(loopback.Faults)
	r := newSlot(f, setup{
		path: newFile(f, fuzzDisk), faults: faults, link: link, options: epfbackend.Options{QueueSize: 64},
		memory: []vringtest.Range{{Base: 1 << 40, Size: 4096}}, // each run has its own
	})
	first := r.mem
	f.Cleanup(func() { r.t, r.mem = f, first })
	f.Fuzz(func(t *testing.T, data []byte) { fuzzOnce(t, r, faults, data) })
}

// fuzzSeeds are a well-formed request of each type, direct and indirect, and some
// of what can be wrong with them.
func fuzzSeeds() (seeds [][]byte) {
	const next, write, here = vringtest.FlagNext, vringtest.FlagWrite, 7
	type part struct {
		off   uint16
		n, by byte // the length, and how it is to be understood
		flags byte
	}
	for kind := range byte(16) {
		parts := []part{{0, 0, 2, 0}, {0x200, 1, 4, 0}, {0x1000, 0, 3, write}}
		if kind == 0 || kind == 8 || kind == 10 {
			parts[1].flags = write
		}
		if kind >= 11 {
			parts[1].n, parts[1].by = 1, 5 // one range
		}
		direct := []byte{4, 0, 0, kind, 5, 0}
		indirect := bytes.Clone(direct)
		for i, p := range parts {
			flags := p.flags
			if i < len(parts)-1 {
				flags |= next
			}
			d := binary.LittleEndian.AppendUint16([]byte{0, byte(i)}, p.off)
			direct = append(append(direct, d...), here, p.n, p.by, flags, byte(i+1))
			e := binary.LittleEndian.AppendUint16([]byte{2, 0, byte(i)}, p.off)
			indirect = append(append(indirect, e...), here, p.n, p.by, flags, byte(i+1))
		}
		kick := []byte{6, 0, 0, 7, 1}
		indirect = append(indirect, 3, 0, byte(len(parts)))
		seeds = append(seeds, append(direct, kick...), append(indirect, kick...))
	}
	return append(seeds,
		[]byte{0, 0, 0, 0, here, 16, 7, next, 1, 0, 1, 0, 0, here, 16, 7, next, 0, 6, 0, 0, 7, 1},               // a loop
		[]byte{0, 0, 0, 0, here, 16, 2, write, 0, 6, 0, 0, 7, 17, 8, 0, 9, 0, 7, 1},                             // an index too far ahead
		[]byte{4, 0, 0, 0, 0, 0, 0, 0, 0, 0, here, 0, 2, next, 1, 0, 1, 0, 0, 0, 1, 4, write, 2, 6, 0, 0, 7, 1}, // into memory that is read-only
	)
}
