package regfile

import (
	"encoding/binary"

	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// This file is the memory that the model explores: as the endpoint sees it, access by
// access, and as it stands.

// image is the common configuration as the model keeps it.
type image [virtiopci.CommonCfgLen]byte

func (m *image) word(off int) uint32       { return binary.LittleEndian.Uint32(m[off:]) }
func (m *image) setWord(off int, v uint32) { binary.LittleEndian.PutUint32(m[off:], v) }

func (m *image) read(off, width int) (v uint32) {
	for i := range width {
		v |= uint32(m[off+i]) << (8 * i)
	}
	return v
}

func (m *image) write(off, width int, v uint32) {
	for i := range width {
		m[off+i] = byte(v >> (8 * i))
	}
}

// tape is the memory of a call that is played: first the past, then one access.
type tape struct {
	past   []byte
	at     int
	mem    *image
	played bool
	whole  bool // do not stop before the call's end
}

type pause struct{}

func (p *tape) next(n int) (past []byte) {
	if p.at < len(p.past) {
		past = p.past[p.at : p.at+n]
		p.at += n
		return past
	}
	if p.played && !p.whole {
		panic(pause{})
	}
	p.played = true
	p.at += n
	return nil
}

func (p *tape) Load32(off int) uint32 {
	if past := p.next(4); past != nil {
		return binary.LittleEndian.Uint32(past)
	}
	v := p.mem.word(off)
	p.past = binary.LittleEndian.AppendUint32(p.past, v)
	return v
}

func (p *tape) Store32(off int, v uint32) {
	if p.next(1) == nil {
		p.mem.setWord(off, v)
		p.past = append(p.past, 0)
	}
}

func (p *tape) CompareAndSwap32(off int, old, v uint32) bool {
	if past := p.next(1); past != nil {
		return past[0] != 0
	}
	if p.mem.word(off) != old {
		p.past = append(p.past, 0)
		return false
	}
	p.mem.setWord(off, v)
	p.past = append(p.past, 1)
	return true
}

// plain is memory that nobody else uses.
type plain []uint32

func (p plain) Load32(off int) uint32     { return p[off/4] }
func (p plain) Store32(off int, v uint32) { p[off/4] = v }
func (p plain) CompareAndSwap32(off int, old, v uint32) bool {
	if p[off/4] != old {
		return false
	}
	p[off/4] = v
	return true
}

// direct is the model's memory without a tape.
type direct struct{ *image }

func (d direct) Load32(off int) uint32     { return d.word(off) }
func (d direct) Store32(off int, v uint32) { d.setWord(off, v) }
func (d direct) CompareAndSwap32(off int, old, v uint32) bool {
	if d.word(off) != old {
		return false
	}
	d.setWord(off, v)
	return true
}
