package vfiouser

import (
	"errors"
	"fmt"
	"syscall"
)

var errShutdown = fmt.Errorf("the device is being removed: %w", syscall.ESHUTDOWN)

// execute runs one command and answers it.
func (c *Conn) execute(m *message) {
	var err error
	switch m.Command {
	case CmdDMAMap:
		err = c.dmaMap(m)
	case CmdDMAUnmap:
		err = c.dmaUnmap(m)
	case CmdGetInfo:
		err = c.getInfo(m)
	case CmdGetRegionInfo:
		err = c.getRegionInfo(m)
	case CmdGetRegionIOFDs:
		err = c.getRegionIOFDs(m)
	case CmdGetIRQInfo:
		err = c.getIRQInfo(m)
	case CmdSetIRQs:
		err = c.setIRQs(m)
	case CmdRegionRead:
		err = c.regionRead(m)
	case CmdRegionWrite:
		err = c.regionWrite(m)
	case CmdRegionWriteMulti:
		err = c.regionWriteMulti(m)
	case CmdReset:
		if err = c.device.Reset(); err == nil {
			err = c.reply(m.Header, 0, nil, nil)
		}
	case CmdVersion:
		err = fmt.Errorf("version is settled: %w", syscall.EINVAL)
	default:
		err = fmt.Errorf("no such command: %w", syscall.ENOTSUP)
	}
	if err != nil {
		c.opts.Logger.Debug("vfio-user command refused", "command", m.Command, "error", err)
		_ = c.replyError(m.Header, err)
	}
}

// reply answers h with a payload of n bytes that fill writes, unless the client
// wants no answer. A failure to send ends the connection and is not reported as
// the command's.
func (c *Conn) reply(h Header, n int, fds []int, fill func([]byte)) error {
	if h.NoReply() {
		return nil
	}
	_ = c.send(Header{ID: h.ID, Command: h.Command, Flags: FlagReply}, n, fds, fill)
	return nil
}

func (c *Conn) replyError(h Header, err error) error {
	if h.NoReply() {
		return nil
	}
	reply := Header{ID: h.ID, Command: h.Command, Flags: FlagReply | FlagError, Errno: uint32(errnoOf(err))}
	return c.send(reply, 0, nil, nil)
}

func errnoOf(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno) && errno != 0:
		return errno
	case errors.Is(err, ErrMalformed):
		return syscall.EINVAL
	}
	return syscall.EIO
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, syscall.EINVAL)...)
}

func (c *Conn) dmaMap(m *message) error {
	d, err := parseDMAMap(m.payload)
	switch {
	case err != nil:
		return err
	case d.Size == 0 || d.Addr+(d.Size-1) < d.Addr:
		return invalid("DMA_MAP of %d bytes at %#x", d.Size, d.Addr)
	case d.Flags&^(DMAMapRead|DMAMapWrite) != 0:
		return invalid("DMA_MAP flags %#x", d.Flags)
	case len(m.fds) > 1:
		return invalid("DMA_MAP with %d descriptors", len(m.fds))
	}
	fd := -1
	if len(m.fds) == 1 {
		fd = m.takeFDs()[0]
	}
	if err := c.device.MapDMA(d, fd); err != nil {
		return err
	}
	return c.reply(m.Header, 0, nil, nil)
}

// dmaUnmap ignores descriptors: some clients send those of the mapping again.
func (c *Conn) dmaUnmap(m *message) error {
	d, err := parseDMAUnmap(m.payload)
	switch {
	case err != nil:
		return err
	case d.Flags&^DMAUnmapAll != 0:
		return fmt.Errorf("DMA_UNMAP flags %#x: %w", d.Flags, syscall.ENOTSUP)
	case d.Flags&DMAUnmapAll != 0 && (d.Addr != 0 || d.Size != 0):
		return invalid("DMA_UNMAP of everything, at %#x", d.Addr)
	case d.Flags&DMAUnmapAll == 0 && (d.Size == 0 || d.Addr+(d.Size-1) < d.Addr):
		return invalid("DMA_UNMAP of %d bytes at %#x", d.Size, d.Addr)
	}
	if err := c.device.UnmapDMA(d); err != nil {
		return err
	}
	return c.reply(m.Header, dmaUnmapSize, nil, d.put)
}

func (c *Conn) getInfo(m *message) error {
	if _, err := parseDeviceInfo(m.payload); err != nil {
		return err
	}
	info := DeviceInfo{DevicePCI | DeviceReset, NumRegions, NumIRQs}
	return c.reply(m.Header, deviceInfoSize, nil, info.put)
}

// getRegionInfo answers in two steps: a client that has no room for the
// capabilities learns how much it needs, and where they will be, and gets no
// descriptor yet.
func (c *Conn) getRegionInfo(m *message) error {
	asked, err := parseRegionInfo(m.payload)
	if err != nil {
		return err
	}
	if asked.Index >= NumRegions {
		return invalid("region %d", asked.Index)
	}
	r := &c.layout.Regions[asked.Index]
	info := RegionInfo{Argsz: regionInfoSize, Flags: r.Flags, Index: asked.Index, Size: r.Size, Offset: r.Offset}
	if len(r.Areas) == 0 {
		return c.reply(m.Header, regionInfoSize, nil, info.put)
	}
	info.Flags |= RegionMmap | RegionCaps
	info.CapOffset = regionInfoSize
	info.Argsz += uint32(sparseSize(len(r.Areas)))
	if asked.Argsz < info.Argsz {
		return c.reply(m.Header, regionInfoSize, nil, info.put)
	}
	return c.reply(m.Header, int(info.Argsz), []int{r.FD}, func(b []byte) {
		info.put(b)
		putSparse(b[regionInfoSize:], r.Areas)
	})
}

// getRegionIOFDs says that no part of a region has a descriptor of its own.
func (c *Conn) getRegionIOFDs(m *message) error {
	if err := needArgsz(m.payload, regionIOFDsSize, "GET_REGION_IO_FDS"); err != nil {
		return err
	}
	index := le.Uint32(m.payload[8:])
	if index >= NumRegions {
		return invalid("region %d", index)
	}
	return c.reply(m.Header, regionIOFDsSize, nil, func(b []byte) {
		clear(b)
		le.PutUint32(b, regionIOFDsSize)
		le.PutUint32(b[8:], index)
	})
}

func (c *Conn) getIRQInfo(m *message) error {
	asked, err := parseIRQInfo(m.payload)
	if err != nil {
		return err
	}
	if asked.Index >= NumIRQs {
		return invalid("interrupt index %d", asked.Index)
	}
	irq := c.layout.IRQs[asked.Index]
	info := IRQInfo{irq.Flags, asked.Index, irq.Count}
	return c.reply(m.Header, irqInfoSize, nil, info.put)
}

func (c *Conn) setIRQs(m *message) error {
	s, err := parseIRQSet(m.payload, m.fds)
	if err != nil {
		return err
	}
	if s.Index >= NumIRQs {
		return invalid("interrupt index %d", s.Index)
	}
	if n := c.layout.IRQs[s.Index].Count; s.Start > n || s.Count > n-s.Start {
		return invalid("interrupts %d+%d of %d", s.Start, s.Count, n)
	}
	if s.Count == 0 && (s.Start != 0 || s.Flags&IRQDataNone == 0) {
		return invalid("no interrupts, from %d", s.Start)
	}
	if s.FDs != nil {
		m.takeFDs()
	}
	if err := c.device.SetIRQs(s); err != nil {
		return err
	}
	return c.reply(m.Header, 0, nil, nil)
}

// region checks that an access lies in a region that allows it.
func (c *Conn) region(a RegionAccess, flag uint32) error {
	if a.Region >= NumRegions {
		return invalid("region %d", a.Region)
	}
	r := &c.layout.Regions[a.Region]
	if a.Offset > r.Size || uint64(a.Count) > r.Size-a.Offset {
		return invalid("access to [%#x, +%d) of region %d", a.Offset, a.Count, a.Region)
	}
	if r.Flags&flag == 0 {
		return fmt.Errorf("access to region %d: %w", a.Region, syscall.EACCES)
	}
	return nil
}

func (c *Conn) regionRead(m *message) error {
	a, err := parseRegionAccess(m.payload)
	if err != nil {
		return err
	}
	if err := c.region(a, RegionRead); err != nil {
		return err
	}
	// The answer is sent from the send buffer, but not read into it: the device
	// may take its time, and may send DMA messages meanwhile.
	data := m.smallBuf[regionAccessSize:]
	if int(a.Count) > len(data) {
		data = make([]byte, a.Count)
	}
	data = data[:a.Count]
	clear(data)
	if err := c.device.ReadRegion(int(a.Region), a.Offset, data); err != nil {
		return err
	}
	if m.NoReply() {
		return nil
	}
	return c.reply(m.Header, regionAccessSize+len(data), nil, func(b []byte) {
		a.put(b)
		copy(b[regionAccessSize:], data)
	})
}

func (c *Conn) regionWrite(m *message) error {
	a, data, err := parseRegionWrite(m.payload)
	if err != nil {
		return err
	}
	if err := c.write1(a, data); err != nil || m.NoReply() {
		return err
	}
	return c.reply(m.Header, regionAccessSize, nil, a.put)
}

func (c *Conn) regionWriteMulti(m *message) error {
	n, err := parseWriteMulti(m.payload)
	if err != nil {
		return err
	}
	for i := range n {
		a, data, err := writeOne(m.payload, i)
		if err != nil {
			return err
		}
		if err := c.write1(a, data); err != nil {
			return err
		}
	}
	return c.reply(m.Header, writeMultiSize, nil, func(b []byte) { le.PutUint64(b, uint64(n)) })
}

func (c *Conn) write1(a RegionAccess, data []byte) error {
	if err := c.region(a, RegionWrite); err != nil {
		return err
	}
	return c.device.WriteRegion(int(a.Region), a.Offset, data)
}
