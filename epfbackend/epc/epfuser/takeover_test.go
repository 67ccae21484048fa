package epfuser

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// lasting is a function that can be left and gone on with. It counts how it ends.
type lasting struct {
	epc.Lasting
	desc                epc.Description
	suspended, detached int
}

func (g *lasting) Describe() epc.Description        { return g.desc }
func (g *lasting) CanContinue(epc.Controller) error { return nil }

func (g *lasting) Suspend(context.Context) error {
	g.suspended++
	return nil
}

func (g *lasting) Detach() error {
	g.detached++
	return nil
}

// Of several functions that another server has left, one cannot be reached. The others
// stay with the host, too, unless their link has ended because one had to be made anew.
func TestOneOfSeveralIsNotReached(t *testing.T) {
	for name, c := range map[string]struct {
		vectors             int // of the function; it was left with 2
		suspended, detached int
	}{
		"as it was": {2, 1, 0},
		"made anew": {3, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			e := new(Endpoint)
			log := slog.New(slog.DiscardHandler)
			served := &lasting{}
			other := &Slot{e: e, fn: served, log: log}
			s := &Slot{ // of which no call to the kernel succeeds
				e: e, dev: new(epfdev.Device), log: log,
				state: make(state, 4096), adopted: true, left: true,
			}
			e.slots = []*Slot{s, other}
			s.state.mark()
			s.state.made(&epc.Description{MSIX: epc.MSIX{Vectors: 2}})

			err := s.Serve(t.Context(), &lasting{desc: epc.Description{MSIX: epc.MSIX{Vectors: c.vectors}}})
			require.Error(t, err)
			require.NoError(t, other.leave(true))
			require.Equal(t, c.suspended, served.suspended)
			require.Equal(t, c.detached, served.detached)
			require.Equal(t, c.suspended == 1, e.left())
			if e.left() {
				require.ErrorContains(t, err, "left to the next server")
			}
		})
	}
}
