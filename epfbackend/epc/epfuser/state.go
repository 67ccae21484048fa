package epfuser

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// The memory that the kernel keeps for a function, and what we have there: a mark, and
// what the next server needs to go on. Values are in the byte order of the machine.
const (
	stateMark = "vblk-ep\x01"

	offKept   = 0x08 // u32: what follows is valid
	offLen    = 0x0c // u32: bytes of the function's state
	offDigest = 0x10 // 32 bytes: of the description that was programmed
	offState  = 0x40
)

var errStateRoom = errors.New("the kernel keeps too few bytes for the function's state")

// state is that memory.
type state []byte

// mark makes it ours.
func (s state) mark() {
	clear(s)
	copy(s, stateMark)
}

// keep notes what the next server needs; the validity last.
func (s state) keep(d *epc.Description, b []byte) error {
	if len(b) > len(s)-offState {
		return fmt.Errorf("%w: %d of %d", errStateRoom, len(s)-offState, len(b))
	}
	copy(s[offState:], b)
	sum := digest(d)
	copy(s[offDigest:], sum[:])
	binary.NativeEndian.PutUint32(s[offLen:], uint32(len(b)))
	binary.NativeEndian.PutUint32(s[offKept:], 1)
	return nil
}

// kept says whether there is something, and for this description if it is not nil.
func (s state) kept(d *epc.Description) bool {
	if !bytes.HasPrefix(s, []byte(stateMark)) || binary.NativeEndian.Uint32(s[offKept:]) != 1 ||
		binary.NativeEndian.Uint32(s[offLen:]) > uint32(len(s)-offState) {
		return false
	}
	if d == nil {
		return true
	}
	sum := digest(d)
	return bytes.Equal(sum[:], s[offDigest:offDigest+len(sum)])
}

// take returns what was kept, once.
func (s state) take() []byte {
	n := binary.NativeEndian.Uint32(s[offLen:])
	binary.NativeEndian.PutUint32(s[offKept:], 0)
	return bytes.Clone(s[offState : offState+n])
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
	if i.StateSize < offState {
		return nil, errStateRoom
	}
	return d.MapState(int(i.StateSize))
}
