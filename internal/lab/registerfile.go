package lab

// readRegisters reads from BAR 0: 4 or 8 bytes, or any size of configuration
// space.
func (l *Lab) readRegisters(off uint64, p []byte) {
	l.stats.registerReads.Add(1)
	clear(p)
	switch n := uint64(len(p)); {
	case off >= blockConfig && off+n <= blockConfig+configSize:
		l.mu.Lock()
		l.function.read(p, int(off-blockConfig))
		l.mu.Unlock()
	case n == 4 && off%4 == 0:
		le.PutUint32(p, l.readRegister(int(off)))
	case n == 8 && off%8 == 0:
		le.PutUint32(p, l.readRegister(int(off)))
		le.PutUint32(p[4:], l.readRegister(int(off+4)))
	}
}

// writeRegisters writes to BAR 0, as readRegisters reads.
func (l *Lab) writeRegisters(off uint64, p []byte) {
	l.stats.registerWrites.Add(1)
	switch n := uint64(len(p)); {
	case off >= blockConfig && off+n <= blockConfig+configSize:
		l.mu.Lock()
		l.function.poke(int(off-blockConfig), p)
		l.mu.Unlock()
	case n == 4 && off%4 == 0:
		l.writeRegister(int(off), le.Uint32(p))
	case n == 8 && off%8 == 0:
		l.writeRegister(int(off), le.Uint32(p))
		l.writeRegister(int(off+4), le.Uint32(p[4:]))
	}
}

// block finds the element of an array of registers that off is in.
func block(off, base, stride, count int) (n, reg int, ok bool) {
	n, reg = (off-base)/stride, (off-base)%stride
	return n, reg, off >= base && n < count
}

func (l *Lab) readRegister(off int) uint32 {
	if n, reg, ok := block(off, blockDMA, strideChannel, numChannels); ok {
		return l.channels[n].read(reg)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n, reg, ok := block(off, blockBARs, strideBAR, numBARs); ok {
		return l.readBAR(n, reg)
	}
	if n, reg, ok := block(off, blockRanges, strideRange, numRanges); ok {
		return l.ranges[n].read(reg)
	}
	if n, reg, ok := block(off, blockWindows, strideWindow, numWindows); ok {
		return l.windows[n].read(reg)
	}
	return l.readGlobal(off)
}

func (l *Lab) readGlobal(off int) uint32 {
	switch off {
	case RegID:
		return identity
	case RegVersion:
		return version
	case RegCaps0:
		return numChannels | numRanges<<8 | numWindows<<16
	case RegCaps1:
		return 12 | 12<<8
	case RegControl:
		return l.control
	case RegStatus:
		return l.status()
	case RegEvent:
		return l.event
	case RegEventEnable:
		return l.eventEnable
	case RegIRQResult:
		return l.irqResult
	case RegOBErrorLo:
		return uint32(l.obErrorAddr)
	case RegOBErrorHi:
		return uint32(l.obErrorAddr >> 32)
	case RegOBErrors:
		return l.obErrors
	}
	if r := l.latched(off); r != nil {
		return *r
	}
	return 0
}

// latched returns a register whose value the RC has seen when the link is up.
func (l *Lab) latched(off int) *uint32 {
	switch f := &l.function; off {
	case RegMSI:
		return &f.msi
	case RegMSIX:
		return &f.msix
	case RegMSIXTable:
		return &f.msixTable
	case RegMSIXPBA:
		return &f.msixPBA
	case RegCapNext:
		return &f.capNext
	}
	return nil
}

func (l *Lab) writeRegister(off int, v uint32) {
	if n, reg, ok := block(off, blockDMA, strideChannel, numChannels); ok {
		l.channels[n].write(reg, v)
		return
	}
	if off == RegControl && v&ControlReset != 0 {
		l.resetController()
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n, reg, ok := block(off, blockBARs, strideBAR, numBARs); ok {
		l.writeBAR(n, reg, v)
	} else if n, reg, ok := block(off, blockRanges, strideRange, numRanges); ok {
		writeMapping(&l.ranges[n], reg, v, l.setRange)
	} else if n, reg, ok := block(off, blockWindows, strideWindow, numWindows); ok {
		writeMapping(&l.windows[n], reg, v, l.setWindow)
	} else {
		l.writeGlobal(off, v)
	}
}

func writeMapping(m *mapping, reg int, v uint32, set func(*mapping, uint32)) {
	switch reg {
	case MapControl:
		set(m, v)
	case MapResult:
	default:
		m.regs[reg/4] = v
	}
}

func (l *Lab) writeGlobal(off int, v uint32) {
	switch off {
	case RegControl:
		switch on := l.control&ControlLinkEnable != 0; {
		case v&ControlLinkEnable == 0:
			l.stopLink()
		case !on:
			l.startLink()
		}
	case RegEvent:
		l.event &^= v
	case RegEventEnable:
		l.eventEnable = v & allEvents
		if l.event&l.eventEnable != 0 {
			l.raiseEP(vectorEvents)
		}
	case RegIRQRaise:
		l.raise(v)
	default:
		if r := l.latched(off); r != nil && l.control&ControlLinkEnable == 0 {
			*r = v
			l.function.rebuild()
		}
	}
}

func (l *Lab) readBAR(n, reg int) uint32 {
	addr := l.function.barAddr(n, l.function.control(n)&BAR64Bit != 0)
	switch reg {
	case BARAddrLo:
		return uint32(addr)
	case BARAddrHi:
		return uint32(addr >> 32)
	}
	return l.function.bars[n][reg/4]
}

func (l *Lab) writeBAR(n, reg int, v uint32) {
	if l.control&ControlLinkEnable != 0 {
		return
	}
	switch reg {
	case BARControl:
		v &= barControlBits
	case BARSizeLo, BARSizeHi:
	default:
		return
	}
	l.function.bars[n][reg/4] = v
	l.function.rebuild()
}
