package epfuser

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// The memory that the kernel keeps for a function, and what we have there: a mark, what
// was programmed, and the function's record. Values are in the byte order of the machine.
const (
	stateMark = "vblk-ep\x02"

	offMade   = 0x08 // u32: the function was programmed as the digest says
	offDigest = 0x10 // 32 bytes: of its description
	offSeen   = 0x30 // u64: the last event that the function was told of
	offRecord = 0x40
)

var errStateRoom = errors.New("the kernel keeps too few bytes for the function's state")

// state is that memory.
type state []byte

// mark makes it ours, of a function that is not programmed.
func (s state) mark() {
	clear(s)
	copy(s, stateMark)
}

// made notes what was programmed; that it was, last.
func (s state) made(d *epc.Description) {
	sum := digest(d)
	copy(s[offDigest:], sum[:])
	binary.NativeEndian.PutUint32(s[offMade:], 1)
}

// saw notes the last event that the function was told of. All that has happened to it
// while nobody was there comes after that.
func (s state) saw(sequence uint64) { atomic.StoreUint64(s.last(), sequence) }

// seen returns that event. It may be called from any goroutine, as saw.
func (s state) seen() uint64 { return atomic.LoadUint64(s.last()) }

func (s state) last() *uint64 { return (*uint64)(unsafe.Pointer(&s[offSeen])) }

// holds says whether the function was programmed by one of us, and as d says if it is
// not nil.
func (s state) holds(d *epc.Description) bool {
	if !bytes.HasPrefix(s, []byte(stateMark)) || binary.NativeEndian.Uint32(s[offMade:]) != 1 {
		return false
	}
	if d == nil {
		return true
	}
	sum := digest(d)
	return bytes.Equal(sum[:], s[offDigest:offDigest+len(sum)])
}

// digest tells descriptions apart.
func digest(d *epc.Description) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%+v %+v %+v", d.Identity, d.BARs, d.MSIX)
	for _, c := range d.Capabilities {
		fmt.Fprintf(h, " %x", c.Data)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// mapState maps the state of a function.
func mapState(d *epfdev.Device) (state, error) {
	i, err := d.Info()
	if err != nil {
		return nil, err
	}
	if i.StateSize < offRecord {
		return nil, errStateRoom
	}
	return d.MapState(int(i.StateSize))
}
