package epfuser

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// transfer reaches host memory.
type transfer struct{ s *Slot }

// ReadHost implements epc.Transfer.
func (t transfer) ReadHost(p []byte, addr uint64) error { return away(t.s.dev.Copy(addr, p, false)) }

// WriteHost implements epc.Transfer.
func (t transfer) WriteHost(p []byte, addr uint64) error { return away(t.s.dev.Copy(addr, p, true)) }

// CopyHost implements epc.Copier.
func (t transfer) CopyHost(list []epc.Copy) error {
	for len(list) > 0 {
		n := min(len(list), epfdev.MaxCopies)
		c := t.s.dev.Copies()
		for _, e := range list[:n] {
			c.Add(e.Addr, e.Local, e.Dir == epc.ToHost)
		}
		if err := c.Do(); err != nil {
			return away(err)
		}
		list = list[n:]
	}
	return nil
}

// away tells that the host cannot be reached in the port's terms.
func away(err error) error {
	if errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("%w: %w", epc.ErrAway, err)
	}
	return err
}
