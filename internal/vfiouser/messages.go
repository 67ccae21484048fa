package vfiouser

import "fmt"

// Sizes of the fixed parts of payloads in bytes.
const (
	dmaMapSize       = 32
	dmaUnmapSize     = 24
	deviceInfoSize   = 16
	regionInfoSize   = 32
	regionIOFDsSize  = 16
	irqInfoSize      = 16
	irqSetSize       = 20
	regionAccessSize = 16
	writeMultiSize   = 8
	writeOneSize     = 24
)

// Flags of DMAMap.
const (
	DMAMapRead  uint32 = 1 << 0
	DMAMapWrite uint32 = 1 << 1
)

// DMAMap tells the server of client memory (VFIO_USER_DMA_MAP).
type DMAMap struct {
	Flags  uint32
	Offset uint64 // in the file that the message's descriptor stands for
	Addr   uint64 // bus address
	Size   uint64
}

func (m DMAMap) put(b []byte) {
	_ = b[dmaMapSize-1]
	le.PutUint32(b[0:], dmaMapSize)
	le.PutUint32(b[4:], m.Flags)
	le.PutUint64(b[8:], m.Offset)
	le.PutUint64(b[16:], m.Addr)
	le.PutUint64(b[24:], m.Size)
}

func parseDMAMap(b []byte) (m DMAMap, err error) {
	if err := needArgsz(b, dmaMapSize, "DMA_MAP"); err != nil {
		return m, err
	}
	return DMAMap{le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])}, nil
}

// DMAUnmapAll in DMAUnmap's flags stands for the whole address space; address
// and size are 0 then.
const DMAUnmapAll uint32 = 1 << 1

// DMAUnmap withdraws client memory (VFIO_USER_DMA_UNMAP).
type DMAUnmap struct {
	Flags uint32
	Addr  uint64
	Size  uint64
}

func (m DMAUnmap) put(b []byte) {
	_ = b[dmaUnmapSize-1]
	le.PutUint32(b[0:], dmaUnmapSize)
	le.PutUint32(b[4:], m.Flags)
	le.PutUint64(b[8:], m.Addr)
	le.PutUint64(b[16:], m.Size)
}

func parseDMAUnmap(b []byte) (m DMAUnmap, err error) {
	if err := needArgsz(b, dmaUnmapSize, "DMA_UNMAP"); err != nil {
		return m, err
	}
	return DMAUnmap{le.Uint32(b[4:]), le.Uint64(b[8:]), le.Uint64(b[16:])}, nil
}

// Flags of DeviceInfo.
const (
	DeviceReset uint32 = 1 << 0
	DevicePCI   uint32 = 1 << 1
)

// DeviceInfo is the answer to VFIO_USER_DEVICE_GET_INFO.
type DeviceInfo struct {
	Flags   uint32
	Regions uint32
	IRQs    uint32
}

func (m DeviceInfo) put(b []byte) {
	_ = b[deviceInfoSize-1]
	le.PutUint32(b[0:], deviceInfoSize)
	le.PutUint32(b[4:], m.Flags)
	le.PutUint32(b[8:], m.Regions)
	le.PutUint32(b[12:], m.IRQs)
}

func parseDeviceInfo(b []byte) (m DeviceInfo, err error) {
	if err := needArgsz(b, deviceInfoSize, "DEVICE_GET_INFO"); err != nil {
		return m, err
	}
	return DeviceInfo{le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])}, nil
}

// Flags of RegionInfo.
const (
	RegionRead  uint32 = 1 << 0
	RegionWrite uint32 = 1 << 1
	RegionMmap  uint32 = 1 << 2
	RegionCaps  uint32 = 1 << 3
)

// RegionInfo is the fixed part of VFIO_USER_DEVICE_GET_REGION_INFO, both ways.
type RegionInfo struct {
	Argsz     uint32 // asked: what the client can take; answered: what there is
	Flags     uint32
	Index     uint32
	CapOffset uint32
	Size      uint64
	Offset    uint64 // to give to mmap for the region's first byte
}

func (m RegionInfo) put(b []byte) {
	_ = b[regionInfoSize-1]
	le.PutUint32(b[0:], m.Argsz)
	le.PutUint32(b[4:], m.Flags)
	le.PutUint32(b[8:], m.Index)
	le.PutUint32(b[12:], m.CapOffset)
	le.PutUint64(b[16:], m.Size)
	le.PutUint64(b[24:], m.Offset)
}

func parseRegionInfo(b []byte) (m RegionInfo, err error) {
	if err := needArgsz(b, regionInfoSize, "GET_REGION_INFO"); err != nil {
		return m, err
	}
	return RegionInfo{
		Argsz: le.Uint32(b[0:]), Flags: le.Uint32(b[4:]), Index: le.Uint32(b[8:]),
		CapOffset: le.Uint32(b[12:]), Size: le.Uint64(b[16:]), Offset: le.Uint64(b[24:]),
	}, nil
}

// Area is a part of a region that the client may map.
type Area struct {
	Offset uint64 // in the region, a multiple of the page size
	Size   uint64 // bytes, a multiple of the page size
}

// The sparse mmap capability: a header, the number of areas, the areas.
const (
	capSparseMmap     = 1
	sparseMmapVersion = 1
	sparseFixedSize   = 16
	sparseAreaSize    = 16
	maxAreas          = 256
)

func sparseSize(areas int) int { return sparseFixedSize + areas*sparseAreaSize }

// putSparse encodes the capability of areas as the last of a region's list.
func putSparse(b []byte, areas []Area) {
	_ = b[sparseSize(len(areas))-1]
	le.PutUint16(b[0:], capSparseMmap)
	le.PutUint16(b[2:], sparseMmapVersion)
	le.PutUint32(b[4:], 0) // no next capability
	le.PutUint32(b[8:], uint32(len(areas)))
	le.PutUint32(b[12:], 0)
	for i, a := range areas {
		le.PutUint64(b[sparseFixedSize+i*sparseAreaSize:], a.Offset)
		le.PutUint64(b[sparseFixedSize+i*sparseAreaSize+8:], a.Size)
	}
}

// parseSparse finds the areas in a whole GET_REGION_INFO payload, whose fixed
// part says that there are capabilities. Unknown capabilities are skipped.
func parseSparse(b []byte, info RegionInfo) ([]Area, error) {
	off := uint64(info.CapOffset)
	for off != 0 {
		if off < regionInfoSize || off+sparseFixedSize > uint64(len(b)) {
			return nil, fmt.Errorf("%w: region capability at %d", ErrMalformed, off)
		}
		c := b[off:]
		if le.Uint16(c) == capSparseMmap {
			n := uint64(le.Uint32(c[8:]))
			if n > maxAreas || uint64(sparseSize(int(n))) > uint64(len(c)) {
				return nil, fmt.Errorf("%w: %d mapped areas in a region", ErrMalformed, n)
			}
			areas := make([]Area, n)
			for i := range areas {
				a := c[sparseSize(i):]
				areas[i] = Area{le.Uint64(a), le.Uint64(a[8:])}
			}
			return areas, nil
		}
		next := uint64(le.Uint32(c[4:]))
		if next != 0 && next <= off {
			return nil, fmt.Errorf("%w: region capabilities run backwards", ErrMalformed)
		}
		off = next
	}
	return nil, nil
}

// Flags of IRQInfo.
const (
	IRQEventfd    uint32 = 1 << 0
	IRQMaskable   uint32 = 1 << 1
	IRQAutomasked uint32 = 1 << 2
	IRQNoResize   uint32 = 1 << 3
)

// IRQInfo is VFIO_USER_DEVICE_GET_IRQ_INFO, both ways.
type IRQInfo struct {
	Flags uint32
	Index uint32
	Count uint32
}

func (m IRQInfo) put(b []byte) {
	_ = b[irqInfoSize-1]
	le.PutUint32(b[0:], irqInfoSize)
	le.PutUint32(b[4:], m.Flags)
	le.PutUint32(b[8:], m.Index)
	le.PutUint32(b[12:], m.Count)
}

func parseIRQInfo(b []byte) (m IRQInfo, err error) {
	if err := needArgsz(b, irqInfoSize, "GET_IRQ_INFO"); err != nil {
		return m, err
	}
	return IRQInfo{le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])}, nil
}

// Flags of IRQSet: one kind of data, one action.
const (
	IRQDataNone      uint32 = 1 << 0
	IRQDataBool      uint32 = 1 << 1
	IRQDataEventfd   uint32 = 1 << 2
	irqDataMask             = IRQDataNone | IRQDataBool | IRQDataEventfd
	IRQActionMask    uint32 = 1 << 3
	IRQActionUnmask  uint32 = 1 << 4
	IRQActionTrigger uint32 = 1 << 5
	irqActionMask           = IRQActionMask | IRQActionUnmask | IRQActionTrigger
)

// IRQSet is VFIO_USER_DEVICE_SET_IRQS: an action on Count interrupts of an
// index, from Start on.
type IRQSet struct {
	Flags uint32
	Index uint32
	Start uint32
	Count uint32

	// Bools says for each interrupt whether the action is meant for it
	// (IRQDataBool).
	Bools []byte
	// FDs are eventfds, one for each interrupt, or none to take them away
	// (IRQDataEventfd).
	FDs []int
}

func (m IRQSet) size() int { return irqSetSize + len(m.Bools) }

func (m IRQSet) put(b []byte) {
	_ = b[m.size()-1]
	le.PutUint32(b[0:], uint32(m.size()))
	le.PutUint32(b[4:], m.Flags)
	le.PutUint32(b[8:], m.Index)
	le.PutUint32(b[12:], m.Start)
	le.PutUint32(b[16:], m.Count)
	copy(b[irqSetSize:], m.Bools)
}

// parseIRQSet decodes and checks everything that does not depend on the device.
func parseIRQSet(b []byte, fds []int) (m IRQSet, err error) {
	if err := needArgsz(b, irqSetSize, "SET_IRQS"); err != nil {
		return m, err
	}
	m = IRQSet{Flags: le.Uint32(b[4:]), Index: le.Uint32(b[8:]), Start: le.Uint32(b[12:]), Count: le.Uint32(b[16:])}
	if !oneOf(m.Flags, irqDataMask) || !oneOf(m.Flags, irqActionMask) || m.Flags&^(irqDataMask|irqActionMask) != 0 {
		return m, fmt.Errorf("%w: SET_IRQS flags %#x", ErrMalformed, m.Flags)
	}
	switch {
	case m.Flags&IRQDataBool != 0:
		if uint64(len(b)-irqSetSize) < uint64(m.Count) {
			return m, fmt.Errorf("%w: SET_IRQS with %d of %d values", ErrMalformed, len(b)-irqSetSize, m.Count)
		}
		m.Bools = b[irqSetSize : irqSetSize+int(m.Count)]
	case m.Flags&IRQDataEventfd != 0:
		if len(fds) != 0 && uint64(len(fds)) != uint64(m.Count) {
			return m, fmt.Errorf("%w: SET_IRQS with %d descriptors for %d interrupts", ErrMalformed, len(fds), m.Count)
		}
		m.FDs = fds
	}
	return m, nil
}

// oneOf says whether exactly one bit of mask is set in v.
func oneOf(v, mask uint32) bool { v &= mask; return v != 0 && v&(v-1) == 0 }

// RegionAccess is the fixed part of VFIO_USER_REGION_READ and REGION_WRITE;
// data follows.
type RegionAccess struct {
	Offset uint64
	Region uint32
	Count  uint32
}

func (m RegionAccess) put(b []byte) {
	_ = b[regionAccessSize-1]
	le.PutUint64(b[0:], m.Offset)
	le.PutUint32(b[8:], m.Region)
	le.PutUint32(b[12:], m.Count)
}

func parseRegionAccess(b []byte) (m RegionAccess, err error) {
	if err := need(b, regionAccessSize, "region access"); err != nil {
		return m, err
	}
	m = RegionAccess{le.Uint64(b[0:]), le.Uint32(b[8:]), le.Uint32(b[12:])}
	if m.Count > MaxTransfer {
		return m, fmt.Errorf("%w: region access of %d bytes", ErrMalformed, m.Count)
	}
	return m, nil
}

// parseRegionWrite decodes a write and returns the data with it.
func parseRegionWrite(b []byte) (m RegionAccess, data []byte, err error) {
	if m, err = parseRegionAccess(b); err != nil {
		return m, nil, err
	}
	if err = need(b[regionAccessSize:], int(m.Count), "data of REGION_WRITE"); err != nil {
		return m, nil, err
	}
	return m, b[regionAccessSize:][:m.Count], nil
}

// parseWriteMulti returns the number of writes in REGION_WRITE_MULTI; the i-th
// one is writeOne(b, i).
func parseWriteMulti(b []byte) (n int, err error) {
	if err := need(b, writeMultiSize, "REGION_WRITE_MULTI"); err != nil {
		return 0, err
	}
	count := le.Uint64(b)
	if count > uint64(len(b)-writeMultiSize)/writeOneSize {
		return 0, fmt.Errorf("%w: REGION_WRITE_MULTI of %d writes in %d bytes", ErrMalformed, count, len(b))
	}
	return int(count), nil
}

func writeOne(b []byte, i int) (m RegionAccess, data []byte, err error) {
	b = b[writeMultiSize+i*writeOneSize:][:writeOneSize]
	return parseRegionWrite(b)
}

// needArgsz is need for payloads that begin with their own size.
func needArgsz(b []byte, n int, what string) error {
	if err := need(b, n, what); err != nil {
		return err
	}
	if argsz := le.Uint32(b); argsz < uint32(n) {
		return fmt.Errorf("%w: %s has argsz %d, needs %d", ErrMalformed, what, argsz, n)
	}
	return nil
}
