package epfbackend

import "github.com/vblk-ep/vblk-ep/virtio/virtiopci"

// This file tells the driver of used buffers and of configuration changes
// (virtio 1.4 §4.1.5.1.3, §4.1.5.4): by MSI-X where the host has turned it on,
// otherwise by the ISR status and the interrupt pin.

// interrupt tells the driver of used buffers.
func (w *worker) interrupt() {
	if !w.ctl.MSIXEnabled() {
		w.f.regs.RaiseISR(virtiopci.ISRQueue)
		return
	}
	vector := w.f.regs.QueueVector(w.index)
	if vector == virtiopci.NoVector {
		return
	}
	if err := w.ctl.RaiseMSIX(vector); err != nil {
		if ok, held := w.complain.allow(); ok {
			w.log.Warn("interrupt not delivered", "vector", vector, "err", err, "held_back", held)
		}
	}
}

// interruptConfig tells the driver of a configuration change, if a host is
// there.
func (f *Function) interruptConfig() {
	f.mu.Lock() // the controller is valid until Detach, which waits for this
	attached, regs := f.ctl != nil, f.regs
	msix := attached && f.ctl.MSIXEnabled()
	if msix {
		f.raiseConfig(regs.ConfigVector())
	}
	f.mu.Unlock()
	if attached && !msix {
		regs.RaiseISR(virtiopci.ISRConfig)
	}
}

// raiseConfig signals the vector of configuration changes. The caller holds f.mu.
func (f *Function) raiseConfig(vector uint16) {
	if vector == virtiopci.NoVector {
		return
	}
	if err := f.ctl.RaiseMSIX(vector); err != nil {
		f.log.Warn("configuration interrupt not delivered", "vector", vector, "err", err)
	}
}

// SetINTx implements regfile.Handler.
func (f *Function) SetINTx(asserted bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctl == nil {
		return
	}
	if err := f.ctl.SetINTx(asserted); err != nil {
		f.log.Warn("interrupt pin not driven", "asserted", asserted, "err", err)
	}
}
