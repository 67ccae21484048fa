package lab

// readRegisters reads from BAR 0.
func (l *Lab) readRegisters(off uint64, p []byte) {
	l.stats.registerReads.Add(1)
	clear(p)
	l.access(int(off), p,
		func(f *function, off int, p []byte) { f.read(p, off) },
		func(off int, p []byte) { le.PutUint32(p, l.readRegister(off)) })
}

// writeRegisters writes to BAR 0.
func (l *Lab) writeRegisters(off uint64, p []byte) {
	if inDoorbell(off) {
		l.ring(off-blockDoorbell, p)
		return
	}
	l.stats.registerWrites.Add(1)
	l.access(int(off), p, (*function).poke,
		func(off int, p []byte) { l.writeRegister(off, le.Uint32(p)) })
}

// access splits an access to BAR 0 into what can be accessed: bytes of a function's
// configuration space, or registers of 4 bytes, of which 8 are two. Others
// do nothing.
func (l *Lab) access(off int, p []byte, config func(*function, int, []byte), register func(int, []byte)) {
	n := len(p)
	if f, at := l.functionAt(off); f != nil && at >= blockConfig && at+n <= blockConfig+configSize {
		l.mu.Lock()
		config(f, at-blockConfig, p)
		l.mu.Unlock()
		return
	}
	if n != 4 && n != 8 || off%n != 0 {
		return
	}
	for ; len(p) > 0; p, off = p[4:], off+4 {
		register(off, p[:4])
	}
}

// functionAt returns the function in whose registers an offset in BAR 0 is, and
// where there; nil if it is in none's.
func (l *Lab) functionAt(off int) (f *function, at int) {
	if off < strideFunction {
		return &l.functions[0], off
	}
	if n, at, ok := block(off, blockFunctions, strideFunction, numFunctions); ok {
		return &l.functions[n], at
	}
	return nil, 0
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
	if n, reg, ok := block(off, blockWindows, strideWindow, numWindows); ok {
		return l.windows[n].read(reg)
	}
	f, reg := l.functionAt(off)
	switch {
	case f == nil:
		return 0
	case f.n == 0 && global(reg):
		return l.readGlobal(reg)
	}
	return f.readRegister(reg)
}

func (l *Lab) writeRegister(off int, v uint32) {
	if n, reg, ok := block(off, blockDMA, strideChannel, numChannels); ok {
		l.channels[n].write(reg, v)
		return
	}
	f, reg := l.functionAt(off)
	if f == &l.functions[0] && reg == RegControl && v&ControlReset != 0 {
		l.resetController()
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n, reg, ok := block(off, blockWindows, strideWindow, numWindows); ok {
		l.windows[n].write(reg, v, l.setWindow)
		return
	}
	switch {
	case f == nil:
	case f.n == 0 && global(reg):
		l.writeGlobal(reg, v)
	default:
		f.writeRegister(reg, v)
	}
}

// global says whether a register is the controller's and not a function's. They
// are among those of the first function.
func global(reg int) bool {
	return reg <= RegControl || reg == RegCaps2 || reg >= RegOBErrorLo && reg <= RegOBErrors
}

func (l *Lab) readGlobal(reg int) uint32 {
	switch reg {
	case RegID:
		return identity
	case RegVersion:
		return version
	case RegCaps0:
		return numChannels | numRanges<<8 | numWindows<<16
	case RegCaps1:
		return 12 | 12<<8 | (numFunctions-1)<<16
	case RegControl:
		return l.control
	case RegCaps2:
		return Caps2Doorbell | when(l.cfg.Doorbell16, Caps2Doorbell16) |
			when(l.cfg.Forgetful, Caps2Forgetful) | vectorDoorbell<<caps2VectorShift
	case RegOBErrorLo:
		return uint32(l.obErrorAddr)
	case RegOBErrorHi:
		return uint32(l.obErrorAddr >> 32)
	case RegOBErrors:
		return l.obErrors
	}
	return 0
}

func (l *Lab) writeGlobal(reg int, v uint32) {
	if reg != RegControl {
		return
	}
	switch on := l.control&ControlLinkEnable != 0; {
	case v&ControlLinkEnable == 0:
		l.stopLink()
	case !on:
		l.startLink()
	}
}

func (f *function) readRegister(reg int) uint32 {
	if n, reg, ok := block(reg, blockBARs, strideBAR, numBARs); ok {
		return f.readBAR(n, reg)
	}
	if n, reg, ok := block(reg, blockRanges, strideRange, numRanges); ok {
		return f.ranges[n].read(reg)
	}
	switch reg {
	case RegStatus:
		return f.status()
	case RegEvent:
		return f.event
	case RegEventEnable:
		return f.eventEnable
	case RegFunction:
		return when(f.present(), FunctionPresent)
	case RegIRQResult:
		return f.irqResult
	}
	if r := f.latched(reg); r != nil {
		return *r
	}
	return 0
}

func (f *function) writeRegister(reg int, v uint32) {
	if n, reg, ok := block(reg, blockBARs, strideBAR, numBARs); ok {
		f.writeBAR(n, reg, v)
		return
	}
	if n, reg, ok := block(reg, blockRanges, strideRange, numRanges); ok {
		f.ranges[n].write(reg, v, f.setRange)
		return
	}
	switch reg {
	case RegEvent:
		f.event &^= v
	case RegEventEnable:
		f.eventEnable = v & allEvents
		if f.event&f.eventEnable != 0 {
			f.l.raiseEP(vectorEvents)
		}
	case RegIRQRaise:
		f.raise(v)
	default:
		if r := f.latched(reg); r != nil && f.l.control&ControlLinkEnable == 0 {
			*r = v
			f.rebuild()
		}
	}
}

// latched returns a register whose value the RC has seen when the link is up.
func (f *function) latched(reg int) *uint32 {
	switch reg {
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
	case RegFunction:
		return &f.control
	}
	return nil
}

func (f *function) readBAR(n, reg int) uint32 {
	addr := f.barAddr(n, f.barControl(n)&BAR64Bit != 0)
	switch reg {
	case BARAddrLo:
		return uint32(addr)
	case BARAddrHi:
		return uint32(addr >> 32)
	}
	return f.bars[n][reg/4]
}

func (f *function) writeBAR(n, reg int, v uint32) {
	if f.l.control&ControlLinkEnable != 0 {
		return
	}
	switch reg {
	case BARControl:
		v &= barControlBits
	case BARSizeLo, BARSizeHi:
	default:
		return
	}
	f.bars[n][reg/4] = v
	f.rebuild()
}
