package regfile

import "math/rand/v2"

// walk takes one random path through the graph: bursts of the driver's steps and
// of the endpoint's accesses, of lengths up to driver and from least to most.
func (m *model) walk(rng *rand.Rand, driver, least, most int) {
	defer func() {
		if r := recover(); r != nil {
			why, is := r.(failure)
			if !is {
				panic(r)
			}
			if m.flaw = string(why); !m.hole {
				m.t.Errorf("%s", why)
			}
		}
	}()
	s := m.begin()
	for s.pc < len(m.script.steps) {
		for range 1 + rng.IntN(driver) {
			next, can := m.drive(s)
			if !can {
				break
			}
			if s = next; s.pc == len(m.script.steps) {
				break
			}
			m.check(&s)
		}
		if m.crash && rng.IntN(40) == 0 {
			if next, can := m.cut(s); can {
				s = next
				m.check(&s)
			}
		}
		for range least + rng.IntN(most-least+1) {
			if s.call == idle {
				s = m.call(s, sampling)
				if rng.IntN(4) == 0 {
					s.draining = false
				}
			}
			s = m.resume(s, false)
			m.check(&s)
		}
	}
	m.settle(s)
}
