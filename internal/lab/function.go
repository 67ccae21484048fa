package lab

import (
	"sync/atomic"

	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// function is one function of the device that the RC sees. The lab's lock guards
// it, but for what the data paths ask for; the methods in this file are called with
// it held.
type function struct {
	l *Lab
	n int

	definition
	event       uint32
	eventEnable uint32
	irqResult   uint32
	ranges      [numRanges]mapping

	// What the data paths ask for.
	host    atomic.Pointer[hostSession]
	inbound atomic.Pointer[[]target] // sorted by BAR and offset
	decodes atomic.Bool              // the RC reaches the BARs
	masters atomic.Bool              // the function reaches RC memory
}

func (f *function) init(l *Lab, n int) {
	f.l, f.n = l, n
	f.resetByEndpoint()
}

// resetByEndpoint takes away what the endpoint programmed.
func (f *function) resetByEndpoint() {
	f.definition.reset()
	f.event, f.eventEnable, f.irqResult = 0, 0, 0
	f.ranges = [numRanges]mapping{}
	f.inbound.Store(new([]target))
}

// forget takes away what the endpoint programmed for the RC, but not that there is
// a function.
func (f *function) forget() {
	control := f.control
	f.definition.reset()
	f.control = control
	f.ranges = [numRanges]mapping{}
	f.inbound.Store(new([]target))
}

// hotReset is what a reset does to the function: all that the RC wrote is gone,
// what the endpoint programmed stays.
func (f *function) hotReset() {
	f.decodes.Store(false)
	f.masters.Store(false)
	f.rebuild()
	if h := f.host.Load(); h != nil {
		h.asserted = false
		_ = h.irqs.SetINTx(false)
	}
}

// present says whether the RC is to find the function: it always finds the first.
func (f *function) present() bool { return f.n == 0 || f.control&FunctionPresent != 0 }

// vacant says whether there is something to show to an RC, and no RC there.
func (f *function) vacant() bool {
	h := f.host.Load()
	return f.l.control&ControlLinkEnable != 0 && f.present() && (h == nil || h.dead)
}

// derive keeps what the data paths ask for at hand.
func (f *function) derive() {
	up := f.l.linkUp.Load() && f.present()
	f.decodes.Store(up && f.memoryOn())
	f.masters.Store(up && f.busMaster())
}

// tell sets events, and raises their vector if one is new and enabled.
func (f *function) tell(events uint32) {
	fresh := events &^ f.event & f.eventEnable
	f.event |= events
	if fresh != 0 {
		f.l.raiseEP(vectorEvents)
	}
}

// changes executes something that the RC does, and tells the endpoint what became
// of it.
func (f *function) changes(execute func()) {
	before := f.status()
	execute()
	f.derive()
	changes := before ^ f.status()
	if changes&StatusBusMaster != 0 {
		f.tell(EventBusMaster)
	}
	if changes&(StatusMSI|StatusMSIX|StatusINTxOff) != 0 {
		f.tell(EventIRQEnable)
		if h := f.host.Load(); h != nil {
			f.driveINTx(h)
		}
	}
}

// status is the STATUS register.
func (f *function) status() uint32 {
	return when(f.l.linkUp.Load(), StatusLinkUp) |
		when(f.busMaster(), StatusBusMaster) |
		when(f.memoryOn(), StatusMemory) |
		when(f.msiOn() > 0, StatusMSI) |
		when(f.msixOn(), StatusMSIX) |
		when(f.command()&virtiopci.CommandINTxDisable != 0, StatusINTxOff)
}

// raise executes IRQ_RAISE.
func (f *function) raise(v uint32) {
	h := f.host.Load()
	if h == nil || !f.l.linkUp.Load() || !f.present() {
		f.irqResult = RaiseNotAllowed
		return
	}
	n := int(v & raiseNumber)
	kind := v &^ raiseNumber
	f.irqResult = RaiseSent
	switch {
	case kind == RaiseINTxAssert || kind == RaiseINTxDeassert:
		if f.image[virtiopci.ConfigInterruptPin] == 0 {
			f.irqResult = RaiseNoVector
			return
		}
		h.asserted = kind == RaiseINTxAssert
		f.driveINTx(h)
	case !f.masters.Load():
		f.irqResult = RaiseNotAllowed
	case kind == RaiseMSI && n < f.msiOn() && h.irqs.MSI(n):
		_ = h.irqs.RaiseMSI(n)
	case kind == RaiseMSIX && f.msixOn() && h.irqs.MSIX(n):
		_ = h.irqs.RaiseMSIX(n)
	default:
		f.irqResult = RaiseNoVector
	}
	if f.irqResult == RaiseSent {
		f.l.stats.interrupts.Add(1)
	}
}

// driveINTx puts the pin's level where the endpoint and the RC want it.
func (f *function) driveINTx(h *hostSession) {
	s := &f.image[virtiopci.ConfigStatus]
	*s &^= virtiopci.StatusINTx
	if h.asserted {
		*s |= virtiopci.StatusINTx
	}
	off := f.command()&virtiopci.CommandINTxDisable != 0
	_ = h.irqs.SetINTx(h.asserted && !off && !f.msixOn() && f.msiOn() == 0)
}
