package doorbell

import "github.com/vblk-ep/vblk-ep/internal/shm"

// quiet stands in a notify word that nobody has written since it was last
// looked at. It is no queue's index: there are at most 65535 queues.
const quiet = 0xffff

// Polled is the doorbell of a notify register that is plain memory: someone has
// to look whether it was written. What it finds it passes on by ringing other
// sources: those of all queues that share the register, for one queue's write may
// have been overwritten by another's.
//
// A driver makes buffers available before it notifies, so a write that comes
// while the word is being made quiet again is not lost: whoever is rung looks at
// the ring after that.
type Polled struct {
	word    shm.Window
	sources []Source
}

// NewPolled returns the doorbell of the 16-bit word at the start of word, which
// it makes quiet. It rings the sources, which stay the caller's.
func NewPolled(word shm.Window, sources ...Source) *Polled {
	word.Store16(0, quiet)
	return &Polled{word, sources}
}

// Poll rings if the word was written since the last Poll, and says whether it
// was. It is for one goroutine.
func (p *Polled) Poll() bool {
	if p.word.Load16(0) == quiet {
		return false
	}
	p.word.Store16(0, quiet)
	shm.Fence()
	for _, s := range p.sources {
		s.Ring()
	}
	return true
}
