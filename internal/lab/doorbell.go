package lab

// inDoorbell says whether an offset in BAR 0 is in the doorbell's page.
func inDoorbell(off uint64) bool { return off-blockDoorbell < granule }

// ring executes a write of the doorbell: of the endpoint's processor, or of the RC
// through a range that leads there. Its value says nothing.
func (l *Lab) ring(off uint64, p []byte) {
	if off != 0 || len(p) != 4 && (len(p) != 2 || !l.cfg.Doorbell16) {
		l.log.Warn("a write of the doorbell that it does not take", "offset", off, "bytes", len(p))
		return
	}
	l.stats.doorbells.Add(1)
	l.raiseEP(vectorDoorbell)
}

// decode keeps at hand where the endpoint's guest put the controller's registers.
func (s *epSession) decode() {
	addr := s.config.barAddr(registersBAR, false)
	if !s.config.memoryOn() {
		addr = 0
	}
	s.registers.Store(addr)
}

// doorbell says whether an address is in the doorbell's page. The controller
// decodes what it sends itself, as controllers do that lead accesses of the RC to
// registers of their own.
func (s *epSession) doorbell(addr uint64) (off uint64, ok bool) {
	base := s.registers.Load()
	return addr - base - blockDoorbell, base != 0 && inDoorbell(addr-base)
}

// ReadDMA reads what is no memory in the endpoint's guest.
func (s *epSession) ReadDMA(p []byte, addr uint64) error {
	if _, ok := s.doorbell(addr); ok {
		clear(p)
		return nil
	}
	return s.conn.ReadDMA(p, addr)
}

// WriteDMA writes to what is no memory in the endpoint's guest.
func (s *epSession) WriteDMA(p []byte, addr uint64) error {
	if off, ok := s.doorbell(addr); ok {
		s.l.ring(off, p)
		return nil
	}
	return s.conn.WriteDMA(p, addr)
}
