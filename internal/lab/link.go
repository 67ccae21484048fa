package lab

import "github.com/vblk-ep/vblk-ep/virtio/virtiopci"

// The methods in this file are called with l.mu held.

// train brings the link up or down, as things are now.
func (l *Lab) train() {
	h := l.hostNow.Load()
	up := l.control&ControlLinkEnable != 0 && h != nil && h.trained && !h.dead && !l.dropped
	if up == l.linkUp.Load() {
		l.signal()
		return
	}
	if up {
		l.linkUp.Store(true)
		l.tell(EventLinkUp)
		l.log.Info("link up")
	} else {
		l.hotReset()
		l.linkUp.Store(false)
		l.tell(EventLinkDown)
		l.log.Info("link down")
	}
	l.derive()
	l.signal()
}

// hotReset is what a reset does to the function: all that the RC wrote is gone,
// what the endpoint programmed stays.
func (l *Lab) hotReset() {
	l.decodes.Store(false)
	l.masters.Store(false)
	l.function.rebuild()
	if h := l.hostNow.Load(); h != nil {
		_ = h.irqs.SetINTx(false)
	}
}

// perst is PERST#, asserted and taken away again by the RC.
func (l *Lab) perst() {
	if l.linkUp.Load() {
		l.linkUp.Store(false)
		l.tell(EventLinkDown)
	}
	l.hotReset()
	l.tell(EventPERSTAssert | EventPERSTDeassert)
	l.log.Info("reset by the root complex")
	l.train()
}

// derive keeps what the data paths ask for at hand.
func (l *Lab) derive() {
	up := l.linkUp.Load()
	l.decodes.Store(up && l.function.memoryOn())
	l.masters.Store(up && l.function.busMaster())
}

// tell sets events, and raises their vector if one is new and enabled.
func (l *Lab) tell(events uint32) {
	fresh := events &^ l.event & l.eventEnable
	l.event |= events
	if fresh != 0 {
		l.raiseEP(vectorEvents)
	}
}

// raiseEP raises a vector of the controller in the endpoint's guest. It may be
// called without l.mu, too.
func (l *Lab) raiseEP(vector int) {
	if ep := l.epNow.Load(); ep != nil {
		if err := ep.irqs.RaiseMSIX(vector); err != nil {
			l.log.Debug("interrupt of the controller", "vector", vector, "err", err)
		}
	}
}

// hostConfig executes a write of the RC to configuration space and tells the
// endpoint what changed by it.
func (l *Lab) hostConfig(off int, p []byte) {
	before := l.status()
	l.function.write(off, p)
	l.derive()
	changes := before ^ l.status()
	if changes&StatusBusMaster != 0 {
		l.tell(EventBusMaster)
	}
	if changes&(StatusMSI|StatusMSIX|StatusINTxOff) != 0 {
		l.tell(EventIRQEnable)
		if h := l.hostNow.Load(); h != nil {
			l.driveINTx(h)
		}
	}
}

// status is the STATUS register.
func (l *Lab) status() uint32 {
	f := &l.function
	return when(l.linkUp.Load(), StatusLinkUp) |
		when(f.busMaster(), StatusBusMaster) |
		when(f.memoryOn(), StatusMemory) |
		when(f.msiOn() > 0, StatusMSI) |
		when(f.msixOn(), StatusMSIX) |
		when(f.command()&virtiopci.CommandINTxDisable != 0, StatusINTxOff)
}

// when is bits if the condition holds, else 0.
func when(condition bool, bits uint32) uint32 {
	if condition {
		return bits
	}
	return 0
}

// raise executes IRQ_RAISE.
func (l *Lab) raise(v uint32) {
	h := l.hostNow.Load()
	if h == nil || !l.linkUp.Load() {
		l.irqResult = RaiseNotAllowed
		return
	}
	n := int(v & raiseNumber)
	kind := v &^ raiseNumber
	l.irqResult = RaiseSent
	switch {
	case kind == RaiseINTxAssert || kind == RaiseINTxDeassert:
		if l.function.image[virtiopci.ConfigInterruptPin] == 0 {
			l.irqResult = RaiseNoVector
			return
		}
		h.asserted = kind == RaiseINTxAssert
		l.driveINTx(h)
	case !l.masters.Load():
		l.irqResult = RaiseNotAllowed
	case kind == RaiseMSI && n < l.function.msiOn() && h.irqs.MSI(n):
		_ = h.irqs.RaiseMSI(n)
	case kind == RaiseMSIX && l.function.msixOn() && h.irqs.MSIX(n):
		_ = h.irqs.RaiseMSIX(n)
	default:
		l.irqResult = RaiseNoVector
	}
	if l.irqResult == RaiseSent {
		l.stats.interrupts.Add(1)
	}
}

// driveINTx puts the pin's level where the endpoint and the RC want it.
func (l *Lab) driveINTx(h *hostSession) {
	s := &l.function.image[virtiopci.ConfigStatus]
	*s &^= virtiopci.StatusINTx
	if h.asserted {
		*s |= virtiopci.StatusINTx
	}
	off := l.function.command()&virtiopci.CommandINTxDisable != 0
	_ = h.irqs.SetINTx(h.asserted && !off && !l.function.msixOn() && l.function.msiOn() == 0)
}
