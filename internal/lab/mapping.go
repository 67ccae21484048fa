package lab

import (
	"cmp"
	"fmt"
	"slices"
)

// mapping is the registers of one inbound range or outbound window. Those that
// are enabled have a target.
type mapping struct {
	regs [strideRange / 4]uint32
	on   bool
	to   target
}

// target says where a part of a BAR leads.
type target struct {
	bar       int
	off, size uint64 // in the BAR, bytes
	addr      uint64 // on the other side
}

func (t target) end() uint64 { return t.off + t.size }

func (t target) overlaps(o target) bool {
	return t.bar == o.bar && t.off < o.end() && o.off < t.end()
}

func (t target) String() string {
	return fmt.Sprintf("BAR %d [%#x, +%#x) → %#x", t.bar, t.off, t.size, t.addr)
}

func (m *mapping) read(reg int) uint32 { return m.regs[reg/4] }

func (m *mapping) asked() target {
	return target{
		bar: int(m.regs[MapControl/4] >> rangeBARShift & rangeBARMask),
		off: pair(m.regs[MapOffsetLo/4:]), size: pair(m.regs[MapSizeLo/4:]), addr: pair(m.regs[MapAddrLo/4:]),
	}
}

// settle executes a write of the control register: check says what keeps the
// target that is asked for from being used. It returns whether anything
// changed.
func (m *mapping) settle(v uint32, check func(target) uint32) bool {
	was := m.on
	m.regs[MapControl/4] = v
	m.regs[MapResult/4] = MapDone
	if v&MapEnable == 0 {
		m.on = false
		return was
	}
	t := m.asked()
	if result := check(t); result != MapDone {
		m.regs[MapResult/4] = result
		m.regs[MapControl/4] &^= MapEnable
		if was {
			m.regs[MapControl/4] |= MapEnable // what was there stays
		}
		return false
	}
	m.on, m.to = true, t
	return true
}

// fits checks what does not depend on other mappings.
func fits(t target, room uint64) uint32 {
	switch {
	case (t.off|t.size|t.addr)%granule != 0 || t.size == 0 || t.addr+t.size-1 < t.addr:
		return MapMisfit
	case t.off >= room || t.size > room-t.off:
		return MapOutside
	}
	return MapDone
}

// overlapped says whether a target overlaps that of another mapping than self.
func overlapped(all []mapping, self *mapping, t target) bool {
	for n := range all {
		if m := &all[n]; m != self && m.on && m.to.overlaps(t) {
			return true
		}
	}
	return false
}

// targets returns what is enabled, in order.
func targets(all []mapping) []target {
	var list []target
	for n := range all {
		if all[n].on {
			list = append(list, all[n].to)
		}
	}
	slices.SortFunc(list, func(a, b target) int {
		return cmp.Or(cmp.Compare(a.bar, b.bar), cmp.Compare(a.off, b.off))
	})
	return list
}

// lookup returns where [off, off+n) of a BAR leads: the address for the longest
// prefix that leads to one place, or ok false and the length of the prefix that
// leads nowhere.
func lookup(list []target, bar int, off, n uint64) (addr, length uint64, ok bool) {
	i, found := slices.BinarySearchFunc(list, target{bar: bar, off: off}, func(t, want target) int {
		if t.bar == want.bar && t.off <= want.off && want.off < t.end() {
			return 0
		}
		return cmp.Or(cmp.Compare(t.bar, want.bar), cmp.Compare(t.off, want.off))
	})
	if found {
		t := list[i]
		return t.addr + (off - t.off), min(n, t.end()-off), true
	}
	if i < len(list) && list[i].bar == bar {
		n = min(n, list[i].off-off)
	}
	return 0, n, false
}

// setRange executes a write of RANGE_CTRL. The caller holds l.mu.
func (l *Lab) setRange(m *mapping, v uint32) {
	if m.on && l.mappedByHost(m.to) && (v&MapEnable == 0 || m.asked() != m.to) {
		m.regs[MapResult/4] = MapBusy
		return
	}
	if m.settle(v, func(t target) uint32 {
		if t.bar >= numBARs || !l.function.present(t.bar) {
			return MapNoBAR
		}
		if result := fits(t, l.function.size(t.bar)); result != MapDone {
			return result
		}
		if overlapped(l.ranges[:], m, t) {
			return MapOverlaps
		}
		return MapDone
	}) {
		list := targets(l.ranges[:])
		l.inbound.Store(&list)
	}
}

// setWindow executes a write of WINDOW_CTRL. The caller holds l.mu.
func (l *Lab) setWindow(m *mapping, v uint32) {
	v &^= rangeBARMask << rangeBARShift
	if m.settle(v, func(t target) uint32 {
		if result := fits(t, windowSize); result != MapDone {
			return result
		}
		if overlapped(l.windows[:], m, t) {
			return MapOverlaps
		}
		return MapDone
	}) {
		list := targets(l.windows[:])
		l.outbound.Store(&list)
	}
}
