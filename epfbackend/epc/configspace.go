package epc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// ErrDescription reports a Description that no configuration space can hold.
var ErrDescription = errors.New("description does not fit a configuration space")

// ConfigSpaceSize is the length of a configuration space in bytes. What lies
// behind the first 256 reads 0: there are no extended capabilities.
const ConfigSpaceSize = virtiopci.ExtendedConfigLen

// ConfigSpace is the configuration space of a function (PCI 3.0 §6), for
// controllers that have no hardware for it. It may be used from any goroutine;
// accesses to a capability's window reach the function, so they must come as
// other accesses to its BARs do: one at a time.
type ConfigSpace struct {
	fn      Function
	desc    Description
	windows []window
	msix    int // offset of the MSI-X control register; 0 if there is none

	mu       sync.Mutex
	image    [virtiopci.ConfigLen]byte
	initial  [virtiopci.ConfigLen]byte
	writable [virtiopci.ConfigLen]byte // bits that a write changes

	msixOn, busMaster atomic.Bool // what image says, for the data path
}

// window is a capability whose last four bytes are a view of a BAR.
type window struct {
	off, len int // of the capability
	target   func(data []byte) (bar int, off uint64, n int)
}

func (w *window) data() int { return w.off + w.len - 4 }

// NewConfigSpace returns the configuration space of fn as it is after a reset.
func NewConfigSpace(fn Function) (*ConfigSpace, error) {
	c := &ConfigSpace{fn: fn, desc: fn.Describe()}
	c.putHeader(&c.desc.Identity)
	if err := c.putBARs(); err != nil {
		return nil, err
	}
	if err := c.putCapabilities(); err != nil {
		return nil, err
	}
	c.initial = c.image
	return c, nil
}

func (c *ConfigSpace) putHeader(id *Identity) {
	le, b := binary.LittleEndian, c.image[:]
	le.PutUint16(b[virtiopci.ConfigVendorID:], id.Vendor)
	le.PutUint16(b[virtiopci.ConfigDeviceID:], id.Device)
	b[virtiopci.ConfigRevision] = id.Revision
	b[virtiopci.ConfigClass] = byte(id.Class)
	b[virtiopci.ConfigClass+1] = byte(id.Class >> 8)
	b[virtiopci.ConfigClass+2] = byte(id.Class >> 16)
	le.PutUint16(b[virtiopci.ConfigSubsystemVendorID:], id.SubsystemVendor)
	le.PutUint16(b[virtiopci.ConfigSubsystemID:], id.SubsystemDevice)
	b[virtiopci.ConfigInterruptPin] = id.InterruptPin

	w := c.writable[:]
	le.PutUint16(w[virtiopci.ConfigCommand:], virtiopci.CommandMemory|virtiopci.CommandBusMaster|
		virtiopci.CommandParity|virtiopci.CommandSERR|virtiopci.CommandINTxDisable)
	w[virtiopci.ConfigCacheLineSize] = 0xff
	w[virtiopci.ConfigInterruptLine] = 0xff
}

// putBARs makes the address bits of each BAR writable: the host learns the size
// from those that are not (PCI 3.0 §6.2.5.1).
func (c *ConfigSpace) putBARs() error {
	for i, bar := range c.desc.BARs {
		if bar.Size == 0 {
			continue
		}
		if bar.Wide || bar.Size < 16 || bar.Size > 1<<31 || bar.Size&(bar.Size-1) != 0 {
			return fmt.Errorf("%w: BAR %d has %d bytes, or 64 bits", ErrDescription, i, bar.Size)
		}
		binary.LittleEndian.PutUint32(c.writable[virtiopci.ConfigBAR0+4*i:], ^uint32(bar.Size-1))
	}
	return nil
}

func (c *ConfigSpace) putCapabilities() error {
	capabilities := c.desc.Capabilities
	if m := c.desc.MSIX; m.Vectors > 0 {
		if m.Vectors > virtiopci.MSIXMaxVectors {
			return fmt.Errorf("%w: %d MSI-X vectors", ErrDescription, m.Vectors)
		}
		capabilities = append([]Capability{msixCapability(m)}, capabilities...)
	}
	at, link := virtiopci.ConfigHeaderLen, virtiopci.ConfigCapabilities
	for _, p := range capabilities {
		n := len(p.Data)
		switch {
		case n < 2 || at+n > len(c.image):
			return fmt.Errorf("%w: capabilities are too long", ErrDescription)
		case p.Writable != nil && len(p.Writable) != n, p.Window != nil && n < 6:
			return fmt.Errorf("%w: capability %#x", ErrDescription, p.Data[0])
		}
		copy(c.image[at:], p.Data)
		copy(c.writable[at:], p.Writable)
		c.image[at+1], c.writable[at+1] = 0, 0
		c.image[link] = byte(at)
		link = at + 1
		if p.Data[0] == virtiopci.CapIDMSIX {
			c.msix = at + virtiopci.MSIXCapControl
		}
		if p.Window != nil {
			c.windows = append(c.windows, window{at, n, p.Window})
		}
		at += (n + 3) &^ 3
	}
	if len(capabilities) > 0 {
		c.image[virtiopci.ConfigStatus] |= virtiopci.StatusCapabilityList
	}
	return nil
}

func msixCapability(m MSIX) Capability {
	data := make([]byte, virtiopci.MSIXCapLen)
	virtiopci.MSIXCap{
		Vectors: m.Vectors, TableBAR: uint8(m.TableBAR), TableOffset: m.TableOffset,
		PBABAR: uint8(m.PBABAR), PBAOffset: m.PBAOffset,
	}.Encode(data, 0)
	writable := make([]byte, len(data))
	binary.LittleEndian.PutUint16(writable[virtiopci.MSIXCapControl:], virtiopci.MSIXEnable|virtiopci.MSIXFunctionMask)
	return Capability{Data: data, Writable: writable}
}

// Read reads len(p) bytes at off; what is behind the end reads 0.
func (c *ConfigSpace) Read(off int, p []byte) {
	clear(p)
	if off < 0 {
		return
	}
	if w, bar, at, ok := c.through(off, len(p)); ok {
		c.fn.ReadBAR(bar, at, p)
		c.mu.Lock()
		copy(c.image[w.data():], p)
		c.mu.Unlock()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if off < len(c.image) {
		copy(p, c.image[off:])
	}
}

// Write writes p at off, as far as what is there can be written.
func (c *ConfigSpace) Write(off int, p []byte) {
	if off < 0 {
		return
	}
	c.mu.Lock()
	for i, v := range p {
		if at := off + i; at < len(c.image) {
			mask := c.writable[at]
			c.image[at] = c.image[at]&^mask | v&mask
		}
	}
	c.derive()
	c.mu.Unlock()
	if _, bar, at, ok := c.through(off, len(p)); ok {
		c.fn.WriteBAR(bar, at, p)
	}
}

// through says whether an access goes through a capability's window, and to
// what: an access to the start of the window, of the length that the capability
// asks for, to a place inside a BAR (virtio 1.4 §4.1.4.9.1).
func (c *ConfigSpace) through(off, n int) (w *window, bar int, at uint64, ok bool) {
	for i := range c.windows {
		w = &c.windows[i]
		if off != w.data() {
			continue
		}
		c.mu.Lock()
		var length int
		bar, at, length = w.target(c.image[w.off : w.off+w.len])
		c.mu.Unlock()
		valid := n == length && (n == 1 || n == 2 || n == 4) && bar >= 0 && bar < len(c.desc.BARs) && at%uint64(n) == 0
		return w, bar, at, valid && at < c.desc.BARs[bar].Size && uint64(n) <= c.desc.BARs[bar].Size-at
	}
	return nil, 0, 0, false
}

// Reset puts the configuration space back to what it was at first.
func (c *ConfigSpace) Reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.image = c.initial
	c.derive()
}

// derive keeps what the data path asks for at hand. The caller holds c.mu.
func (c *ConfigSpace) derive() {
	le := binary.LittleEndian
	c.msixOn.Store(c.msix != 0 && le.Uint16(c.image[c.msix:])&virtiopci.MSIXEnable != 0)
	c.busMaster.Store(le.Uint16(c.image[virtiopci.ConfigCommand:])&virtiopci.CommandBusMaster != 0)
}

// MSIXEnabled says whether the host has turned MSI-X on.
func (c *ConfigSpace) MSIXEnabled() bool { return c.msixOn.Load() }

// BusMaster says whether the host lets the function access its memory.
func (c *ConfigSpace) BusMaster() bool { return c.busMaster.Load() }
