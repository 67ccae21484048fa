package vfiouser

import "fmt"

// DMALayout is the layout of VFIO_USER_DMA_READ and DMA_WRITE payloads.
type DMALayout int32

const (
	dmaLayoutUnknown DMALayout = iota
	// DMALayoutSpec is the specification's: a 64-bit count, and the data behind
	// it. QEMU 11.1 speaks it.
	DMALayoutSpec
	// DMALayout32 is that of QEMU's first releases of the client: a 32-bit
	// count, the data right behind it, and four bytes more at the end, so that
	// the messages are of the same length.
	DMALayout32
)

// dmaAccessSize is the size of all that is not data, in either layout.
const dmaAccessSize = 16

func (l DMALayout) dataOffset() int {
	if l == DMALayout32 {
		return 12
	}
	return 16
}

// put encodes the fixed part into b, which has dmaAccessSize bytes or more.
func (l DMALayout) put(b []byte, addr, count uint64) {
	_ = b[dmaAccessSize-1]
	le.PutUint64(b, addr)
	if l == DMALayout32 {
		le.PutUint32(b[8:], uint32(count))
		return
	}
	le.PutUint64(b[8:], count)
}

func (l DMALayout) parse(b []byte) (addr, count uint64, err error) {
	if err := need(b, dmaAccessSize, "DMA access"); err != nil {
		return 0, 0, err
	}
	addr, count = le.Uint64(b), le.Uint64(b[8:])
	if l == DMALayout32 {
		count &= 0xffffffff
	}
	if count > MaxTransfer {
		return 0, 0, fmt.Errorf("%w: DMA access of %d bytes", ErrMalformed, count)
	}
	return addr, count, nil
}

// data returns the n bytes of data in a payload.
func (l DMALayout) data(b []byte, n int) ([]byte, error) {
	if err := need(b, dmaAccessSize+n, "data of a DMA access"); err != nil {
		return nil, err
	}
	return b[l.dataOffset():][:n], nil
}

// probeCount is the count of the DMA_READ that tells the layouts apart: nothing
// at all to read for who looks at 32 bits, far too much for who looks at 64.
const probeCount = 1 << 32
