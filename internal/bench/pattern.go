package bench

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// ErrVerify reports data that is not what was written.
var ErrVerify = errors.New("wrong data")

// A verified sector is 64 words of eight bytes. The first ones say what it is; the
// others follow from them, so that a sector that is torn is found whatever part is
// missing.
const (
	wordSeed       = 0 // of the run
	wordOffset     = 1 // of the sector on the disk, in bytes
	wordGeneration = 2 // how often its block was written by the run, this time included
	wordsPlain     = 3
	sectorWords    = virtioblk.SectorSize / 8

	// wordStep is odd, so all words of a sector differ.
	wordStep = 0x9e3779b97f4a7c15
)

// stamp fills b, whole sectors that will stand at off, for a generation.
func stamp(b []byte, seed, off uint64, generation uint32) {
	le := binary.LittleEndian
	for ; len(b) > 0; b, off = b[virtioblk.SectorSize:], off+virtioblk.SectorSize {
		s := (*[virtioblk.SectorSize]byte)(b)
		le.PutUint64(s[8*wordSeed:], seed)
		le.PutUint64(s[8*wordOffset:], off)
		le.PutUint64(s[8*wordGeneration:], uint64(generation))
		w := body(seed, off, generation)
		for i := wordsPlain; i < sectorWords; i++ {
			le.PutUint64(s[8*i:], w)
			w += wordStep
		}
	}
}

// body returns the first of the words that follow from the others.
func body(seed, off uint64, generation uint32) uint64 {
	return mix(seed ^ mix(off^mix(uint64(generation))))
}

// inspect reports the first sector of b, read from off, that is not as stamp left
// it. The error wraps ErrVerify.
func inspect(b []byte, seed, off uint64, generation uint32) error {
	le := binary.LittleEndian
	for ; len(b) > 0; b, off = b[virtioblk.SectorSize:], off+virtioblk.SectorSize {
		s := (*[virtioblk.SectorSize]byte)(b)
		gotSeed, gotOff, gotGen := le.Uint64(s[8*wordSeed:]), le.Uint64(s[8*wordOffset:]), le.Uint64(s[8*wordGeneration:])
		switch {
		case gotSeed != seed:
			return fmt.Errorf("%w at %d: a write of this run is not there", ErrVerify, off)
		case gotOff != off:
			return fmt.Errorf("%w at %d: it was written to %d", ErrVerify, off, gotOff)
		case gotGen != uint64(generation):
			return fmt.Errorf("%w at %d: write %d of the block, and %d were completed", ErrVerify, off, gotGen, generation)
		}
		w := body(seed, off, generation)
		for i := wordsPlain; i < sectorWords; i++ {
			if le.Uint64(s[8*i:]) != w {
				return fmt.Errorf("%w at %d: it differs from byte %d on", ErrVerify, off, 8*i)
			}
			w += wordStep
		}
	}
	return nil
}
