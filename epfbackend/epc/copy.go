package epc

import (
	"fmt"

	"github.com/vblk-ep/vblk-ep/vring"
)

// Copy is one transfer of a list.
type Copy struct {
	Dir   Direction
	Addr  uint64 // bus address
	Local []byte
}

// Copier is what a Transfer can be, too: one that makes several transfers for the price
// of one.
type Copier interface {
	// CopyHost makes transfers one after the other, up to the first that fails. Who has
	// listed them is not told which that was.
	CopyHost(list []Copy) error
}

// Joins says whether a transfer can be one of a list.
func (v *View) Joins(c Copy) bool {
	a := vring.Read
	if c.Dir == ToHost {
		a = vring.Write
	}
	r := v.region(c.Addr)
	return v.m.copier != nil && r != nil && r.Mem == nil && r.allows(a) &&
		uint64(len(c.Local)) <= r.Size-(c.Addr-r.Addr)
}

// Copy makes transfers, which must be such as can be listed, in order.
func (v *View) Copy(list []Copy) error {
	if err := v.m.copier.CopyHost(list); err != nil {
		return fmt.Errorf("%d transfers, the last at %#x: %w", len(list), list[len(list)-1].Addr, err)
	}
	return nil
}
