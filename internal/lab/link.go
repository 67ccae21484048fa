package lab

import "github.com/vblk-ep/vblk-ep/virtio/virtiopci"

// The methods in this file are called with l.mu held, unless they say otherwise.

// startLink executes LINK_ENABLE.
func (l *Lab) startLink() {
	for n := range l.functions {
		f := &l.functions[n]
		if !f.present() {
			continue
		}
		if err := f.check(); err != nil {
			l.log.Error("the endpoint cannot start the link", "function", n, "err", err)
			return
		}
	}
	several := len(l.present()) > 1
	for n := range l.functions {
		kind := &l.functions[n].image[virtiopci.ConfigHeaderType]
		*kind &^= multifunction
		if several {
			*kind |= multifunction
		}
	}
	if !l.forgotten || !l.asBefore() {
		l.bury()
		l.starts++
	}
	l.forgotten = false
	l.control |= ControlLinkEnable
	l.log.Info("the endpoint starts the link", "functions", l.present())
	l.train()
}

// started says whether there is a device in the RC's slot: since the link was
// started, and while it is to be started again after a reset.
func (l *Lab) started() bool { return l.control&ControlLinkEnable != 0 || l.forgotten }

// asBefore says whether the device is still the one that the RC's monitor knows.
func (l *Lab) asBefore() bool {
	for n := range l.functions {
		f := &l.functions[n]
		h := f.host.Load()
		if there := h != nil && !h.dead; there != f.present() || there && !h.describes() {
			return false
		}
	}
	return true
}

// bury makes the device that the RC has one that is no more.
func (l *Lab) bury() {
	for n := range l.functions {
		if h := l.functions[n].host.Load(); h != nil {
			h.dead = true
		}
	}
}

// forget is what PERST# does to a controller that keeps nothing.
func (l *Lab) forget() {
	l.control &^= ControlLinkEnable
	l.forgotten = true
	for n := range l.functions {
		l.functions[n].forget()
	}
	l.windows = [numWindows]mapping{}
	l.outbound.Store(new([]target))
}

// present returns the numbers of the functions that the RC finds.
func (l *Lab) present() (list []int) {
	for n := range l.functions {
		if l.functions[n].present() {
			list = append(list, n)
		}
	}
	return list
}

// stopLink ends the time of the RC that is there: it finds no function any more,
// until it is plugged in again.
func (l *Lab) stopLink() {
	if !l.started() {
		return
	}
	l.control &^= ControlLinkEnable
	l.forgotten = false
	l.bury()
	l.train()
}

// train brings the link up or down, as things are now. It is the RC's use of the
// first function that brings it up: no device is without, and it is the last to
// come.
func (l *Lab) train() {
	h := l.functions[0].host.Load()
	up := l.control&ControlLinkEnable != 0 && h != nil && h.trained && !h.dead && !l.dropped
	if up == l.linkUp.Load() {
		l.signal()
		return
	}
	l.linkUp.Store(up)
	if up {
		l.functions[0].tell(EventLinkUp)
		l.log.Info("link up")
	} else {
		l.hotReset()
		l.functions[0].tell(EventLinkDown)
		l.log.Info("link down")
	}
	for n := range l.functions {
		l.functions[n].derive()
	}
	l.signal()
}

// hotReset is what a reset of the link does to all functions.
func (l *Lab) hotReset() {
	for n := range l.functions {
		l.functions[n].hotReset()
	}
}

// perst is PERST#, asserted and taken away again by the RC.
func (l *Lab) perst() {
	l.used = false
	if l.linkUp.Load() {
		l.linkUp.Store(false)
		l.functions[0].tell(EventLinkDown)
	}
	l.hotReset()
	if l.cfg.Forgetful && l.started() {
		l.forget()
	}
	l.functions[0].tell(EventPERSTAssert | EventPERSTDeassert)
	l.log.Info("reset by the root complex")
	l.train()
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

// when is bits if the condition holds, else 0.
func when(condition bool, bits uint32) uint32 {
	if condition {
		return bits
	}
	return 0
}
