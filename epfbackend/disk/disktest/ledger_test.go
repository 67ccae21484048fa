package disktest

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A ledger says of every disk that breaks a promise that it did.
func TestLedger(t *testing.T) {
	const sectors = 4
	written := func(l *Ledger, at int) (e *Entry, p []byte) {
		p = make([]byte, SectorSize)
		return l.Write(at, p), p
	}
	image := func(at int, p []byte) []byte {
		b := make([]byte, sectors*SectorSize)
		copy(b[at*SectorSize:], p)
		return b
	}
	for name, test := range map[string]func(l *Ledger){
		"stable when done": func(l *Ledger) {
			e, p := written(l, 2)
			l.Done(e, true)
			require.ErrorContains(t, l.Restart(image(0, nil)), "sector 2 holds write 0, and may hold one of [1]")
			require.NoError(t, l.Restart(image(2, p)))
			require.ErrorContains(t, l.Restart(image(0, nil)), "sector 2 holds write 0")
		},
		"stable when flushed": func(l *Ledger) {
			e, p := written(l, 2)
			early := l.Now(0, sectors)
			l.Done(e, false)
			l.Flushed(early)
			require.NoError(t, l.Read(l.Now(2, 1), p))
			require.ErrorContains(t, l.Read(l.Now(2, 1), make([]byte, SectorSize)), "sector 2 holds write 0")
			l.Flushed(l.Now(0, sectors))
			require.Error(t, l.Restart(image(0, nil)))
		},
		"not stable": func(l *Ledger) {
			e, _ := written(l, 2)
			early := l.Now(0, sectors)
			l.Done(e, false)
			l.Flushed(early)
			require.NoError(t, l.Restart(image(0, nil)))
		},
		"torn": func(l *Ledger) {
			_, p := written(l, 2)
			p[300]++
			require.ErrorContains(t, l.Restart(image(2, p)), "never written")
		},
		"elsewhere": func(l *Ledger) {
			_, p := written(l, 2)
			require.ErrorContains(t, l.Restart(image(1, p)), "never written")
		},
		"together": func(l *Ledger) {
			a, p := written(l, 2)
			b, q := written(l, 2)
			m := l.Now(2, 1)
			l.Done(a, true)
			l.Done(b, false)
			require.NoError(t, l.Read(m, make([]byte, SectorSize)), "the read began before they were done")
			require.Error(t, l.Read(l.Now(2, 1), make([]byte, SectorSize)))
			require.NoError(t, l.Read(l.Now(2, 1), p))
			require.NoError(t, l.Restart(image(2, q)))
		},
		"zeroed": func(l *Ledger) {
			e, p := written(l, 2)
			l.Done(e, true)
			l.Done(l.Zero(2, 1), true)
			require.Error(t, l.Restart(image(2, p)))
			require.NoError(t, l.Restart(image(0, nil)))
		},
		"discarded": func(l *Ledger) {
			l.Done(l.Discard(2, 1), true)
			p := make([]byte, SectorSize)
			p[7] = 1
			require.NoError(t, l.Restart(image(2, p)))
		},
	} {
		t.Run(name, func(*testing.T) { test(NewLedger(sectors)) })
	}
}
