package vfiouser

import (
	"fmt"

	"github.com/vblk-ep/vblk-ep/internal/shm"
)

// Info asks for the device's kind and size.
func (c *Client) Info() (DeviceInfo, error) {
	b, _, err := c.do(CmdGetInfo, deviceInfoSize, nil, deviceInfoSize, DeviceInfo{}.put)
	if err != nil {
		return DeviceInfo{}, err
	}
	return parseDeviceInfo(b)
}

// RegionView is what a client knows of a region.
type RegionView struct {
	RegionInfo
	Areas []Area
	FD    int // owned by the caller, -1 if there is none
}

// Region asks for a region, in two steps where it has capabilities, as QEMU
// does.
func (c *Client) Region(index int) (RegionView, error) {
	v := RegionView{FD: -1}
	argsz := uint32(regionInfoSize)
	for range 2 {
		ask := RegionInfo{Argsz: argsz, Index: uint32(index)}
		b, fds, err := c.do(CmdGetRegionInfo, regionInfoSize, nil, int(argsz), ask.put)
		if err != nil {
			return v, err
		}
		v.RegionInfo, err = parseRegionInfo(b)
		if err == nil && v.Argsz <= argsz {
			return c.region(v, b, fds)
		}
		closeFDs(fds)
		if err != nil {
			return v, err
		}
		if v.Flags&RegionCaps != 0 && (v.CapOffset < regionInfoSize || v.CapOffset > v.Argsz) {
			return v, fmt.Errorf("%w: region %d: cap_offset %d before its capabilities", errUnexpectedReply, index, v.CapOffset)
		}
		argsz = min(v.Argsz, 1<<16)
	}
	return v, fmt.Errorf("%w: region %d still grows", errUnexpectedReply, index)
}

func (c *Client) region(v RegionView, b []byte, fds []int) (RegionView, error) {
	var err error
	if v.Flags&RegionCaps != 0 {
		v.Areas, err = parseSparse(b, v.RegionInfo)
	}
	if err == nil && len(fds) > 1 {
		err = fmt.Errorf("%w: %d descriptors with a region", errUnexpectedReply, len(fds))
	}
	if err != nil {
		closeFDs(fds)
		return v, err
	}
	if len(fds) == 1 {
		v.FD = fds[0]
	}
	return v, nil
}

// MapArea maps the i-th area of a region.
func (v RegionView) MapArea(i int) (*shm.Mapping, error) {
	a := v.Areas[i]
	return shm.Map(v.FD, int64(v.Offset+a.Offset), int(a.Size), v.Flags&RegionWrite != 0)
}

// IRQ asks for an interrupt index.
func (c *Client) IRQ(index int) (IRQInfo, error) {
	b, _, err := c.do(CmdGetIRQInfo, irqInfoSize, nil, irqInfoSize, IRQInfo{Index: uint32(index)}.put)
	if err != nil {
		return IRQInfo{}, err
	}
	return parseIRQInfo(b)
}

// SetIRQs sends s; its descriptors stay the caller's.
func (c *Client) SetIRQs(s IRQSet) error {
	_, _, err := c.do(CmdSetIRQs, s.size(), s.FDs, 0, s.put)
	return err
}

// MapDMA offers memory to the server, with the descriptor of the file it lies
// in, which stays the caller's, or -1.
func (c *Client) MapDMA(m DMAMap, fd int) error {
	var fds []int
	if fd >= 0 {
		fds = []int{fd}
	}
	_, _, err := c.do(CmdDMAMap, dmaMapSize, fds, 0, m.put)
	return err
}

// UnmapDMA withdraws memory.
func (c *Client) UnmapDMA(m DMAUnmap) error {
	_, _, err := c.do(CmdDMAUnmap, dmaUnmapSize, nil, dmaUnmapSize, m.put)
	return err
}

// ReadRegion reads len(p) bytes of a region, MaxTransfer at most.
func (c *Client) ReadRegion(region int, off uint64, p []byte) error {
	a := RegionAccess{off, uint32(region), uint32(len(p))}
	b, _, err := c.do(CmdRegionRead, regionAccessSize, nil, regionAccessSize+len(p), a.put)
	if err != nil {
		return err
	}
	_, data, err := parseRegionWrite(b) // a read's reply looks like a write
	if err == nil && len(data) != len(p) {
		err = fmt.Errorf("%w: %d of %d bytes read", errUnexpectedReply, len(data), len(p))
	}
	copy(p, data)
	return err
}

// WriteRegion writes p to a region and waits until it is done.
func (c *Client) WriteRegion(region int, off uint64, p []byte) error {
	a := RegionAccess{off, uint32(region), uint32(len(p))}
	_, _, err := c.do(CmdRegionWrite, regionAccessSize+len(p), nil, regionAccessSize, func(b []byte) {
		a.put(b)
		copy(b[regionAccessSize:], p)
	})
	return err
}

// PostRegion writes p to a region without waiting (a posted write).
func (c *Client) PostRegion(region int, off uint64, p []byte) error {
	a := RegionAccess{off, uint32(region), uint32(len(p))}
	h := Header{Command: CmdRegionWrite, Flags: FlagCommand | FlagNoReply}
	return c.send(h, regionAccessSize+len(p), nil, func(b []byte) {
		a.put(b)
		copy(b[regionAccessSize:], p)
	})
}

// Write is one write of WriteMulti; Data has up to 8 bytes.
type Write struct {
	Region int
	Offset uint64
	Data   []byte
}

// WriteMulti sends several small writes in one message and waits for them.
func (c *Client) WriteMulti(writes []Write) error {
	n := writeMultiSize + len(writes)*writeOneSize
	_, _, err := c.do(CmdRegionWriteMulti, n, nil, writeMultiSize, func(b []byte) {
		clear(b)
		le.PutUint64(b, uint64(len(writes)))
		for i, w := range writes {
			one := b[writeMultiSize+i*writeOneSize:][:writeOneSize]
			RegionAccess{w.Offset, uint32(w.Region), uint32(len(w.Data))}.put(one)
			copy(one[regionAccessSize:], w.Data)
		}
	})
	return err
}

// Reset resets the device.
func (c *Client) Reset() error {
	_, _, err := c.do(CmdReset, 0, nil, 0, nil)
	return err
}
