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
	function  int    // that issues what goes through a window
	bar       int    // of a range
	off, size uint64 // in the BAR, bytes
	addr      uint64 // on the other side
}

func (t *target) end() uint64 { return t.off + t.size }

// at returns where an offset in the BAR leads.
func (t *target) at(off uint64) uint64 { return t.addr + (off - t.off) }

func (t *target) overlaps(o *target) bool {
	return t.bar == o.bar && t.off < o.end() && o.off < t.end()
}

// String describes the target of a range.
func (t target) String() string {
	return fmt.Sprintf("BAR %d [%#x, +%#x) → %#x", t.bar, t.off, t.size, t.addr)
}

func (m *mapping) read(reg int) uint32 { return m.regs[reg/4] }

// write is a write of the endpoint; set executes one of the control register.
func (m *mapping) write(reg int, v uint32, set func(*mapping, uint32)) {
	switch reg {
	case MapControl:
		set(m, v)
	case MapResult:
	default:
		m.regs[reg/4] = v
	}
}

// asked returns the target that is asked for by a write of the control register.
func (m *mapping) asked(v uint32) target {
	return target{
		function: int(v >> functionShift & functionMask), bar: int(v >> rangeBARShift & rangeBARMask),
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
	t := m.asked(v)
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

// fits says what keeps a target of m, which is one of all, from its place in a BAR
// of this size.
func fits(all []mapping, m *mapping, t *target, room uint64) uint32 {
	switch {
	case (t.off|t.size|t.addr)%granule != 0 || t.size == 0 || t.addr+t.size-1 < t.addr:
		return MapMisfit
	case t.off >= room || t.size > room-t.off:
		return MapOutside
	}
	for n := range all {
		if o := &all[n]; o != m && o.on && o.to.overlaps(t) {
			return MapOverlaps
		}
	}
	return MapDone
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

// lookup returns what the longest prefix of [off, off+n) of a BAR leads to, or nil
// and the length of the prefix that leads nowhere.
func lookup(list []target, bar int, off, n uint64) (to *target, length uint64) {
	i, found := slices.BinarySearchFunc(list, target{bar: bar, off: off}, func(t, want target) int {
		if t.bar == want.bar && t.off <= want.off && want.off < t.end() {
			return 0
		}
		return cmp.Or(cmp.Compare(t.bar, want.bar), cmp.Compare(t.off, want.off))
	})
	if found {
		return &list[i], min(n, list[i].end()-off)
	}
	if i < len(list) && list[i].bar == bar {
		n = min(n, list[i].off-off)
	}
	return nil, n
}

// setRange executes a write of RANGE_CTRL. The caller holds the lab's lock.
func (f *function) setRange(m *mapping, v uint32) {
	v &^= functionMask << functionShift
	if m.on && f.mappedByHost(&m.to) && (v&MapEnable == 0 || m.asked(v) != m.to) {
		m.regs[MapResult/4] = MapBusy
		return
	}
	if m.settle(v, func(t target) uint32 {
		if t.bar >= numBARs || !f.hasBAR(t.bar) {
			return MapNoBAR
		}
		return fits(f.ranges[:], m, &t, f.size(t.bar))
	}) {
		list := targets(f.ranges[:])
		f.inbound.Store(&list)
	}
}

// setWindow executes a write of WINDOW_CTRL. The caller holds l.mu.
func (l *Lab) setWindow(m *mapping, v uint32) {
	v &^= rangeBARMask << rangeBARShift
	if m.settle(v, func(t target) uint32 {
		if t.function >= numFunctions {
			return MapNoBAR
		}
		return fits(l.windows[:], m, &t, windowSize)
	}) {
		list := targets(l.windows[:])
		l.outbound.Store(&list)
	}
}
