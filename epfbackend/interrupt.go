package epfbackend

import (
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// interrupt tells the driver of used buffers or of a configuration change
// (virtio 1.4 §4.1.5.1.3, §4.1.5.4): by MSI-X where the host has turned it on,
// otherwise by the ISR status and the interrupt pin.
func (f *Function) interrupt(ctl epc.Controller, vector uint16, isr uint8) {
	var err error
	switch {
	case !ctl.MSIXEnabled():
		f.regs.RaiseISR(isr)
		err = ctl.SetINTx(true)
	case vector != virtiopci.NoVector:
		err = ctl.RaiseMSIX(vector)
	}
	if err != nil {
		f.log.Warn("interrupt not delivered", "vector", vector, "err", err)
	}
}

// interruptConfig tells the driver of a configuration change, if a host is
// there.
func (f *Function) interruptConfig() {
	f.mu.Lock()
	ctl := f.ctl
	f.mu.Unlock()
	if ctl != nil {
		f.interrupt(ctl, f.regs.ConfigVector(), virtiopci.ISRConfig)
	}
}

// ReleaseINTx implements regfile.Handler.
func (f *Function) ReleaseINTx() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ctl == nil {
		return
	}
	if err := f.ctl.SetINTx(false); err != nil {
		f.log.Warn("interrupt pin not released", "err", err)
	}
}
