package epfbackend

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/epfbackend/regfile"
)

// slowAttach is a function to which something happens while it is being attached.
type slowAttach struct {
	*Function
	meanwhile func()
}

func (f slowAttach) Attach(c epc.Controller) {
	f.mu.Lock()
	f.ctl = c
	f.mu.Unlock()
	regs := regfile.NewTrapFree(f.trapFreeConfig(c), f.Function)
	f.meanwhile()
	f.watch(c, regs, regfile.Running{})
}

// A disk that changes its size after the registers were written, and before anybody
// could be told, has the new one in the registers.
func TestResizeDuringAttach(t *testing.T) {
	path := t.TempDir() + "/disk"
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	store, err := disk.Open(path, disk.Options{})
	require.NoError(t, err)
	defer store.Close()
	f, err := New(store, Options{TrapFree: true})
	require.NoError(t, err)
	defer f.Close()
	slot, err := loopback.Plug(slowAttach{f, func() {
		require.NoError(t, os.Truncate(path, 2<<20))
		require.NoError(t, f.Refresh())
	}}, nil)
	require.NoError(t, err)
	require.EqualValues(t, 2<<20, f.toldSize())
	require.NoError(t, slot.Unplug())
}
