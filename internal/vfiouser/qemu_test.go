package vfiouser

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/shm"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// mapper is a toy that maps client memory.
type mapper struct {
	*toy
	mu    sync.Mutex
	low   *shm.Mapping // what is mapped at address 0
	other []*shm.Mapping
}

func (m *mapper) MapDMA(d DMAMap, fd int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if fd < 0 {
		return m.toy.MapDMA(d, -1)
	}
	mapping, err := shm.Map(fd, int64(d.Offset), int(d.Size), d.Flags&DMAMapWrite != 0)
	if err != nil {
		return err
	}
	if d.Addr == 0 {
		m.low = mapping
	}
	m.other = append(m.other, mapping) // released with the test
	return m.toy.MapDMA(d, fd)
}

// monitor runs a command of QEMU's human monitor.
func monitor(t *testing.T, v *vm.VM, format string, args ...any) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := v.QMP(ctx, "human-monitor-command", map[string]string{"command-line": fmt.Sprintf(format, args...)})
	require.NoError(t, err)
	var text string
	require.NoError(t, json.Unmarshal(out, &text))
	return text
}

// setConfig writes to the configuration space of the device in slot 4.
func setConfig(t *testing.T, v *vm.VM, reg, value uint32) {
	monitor(t, v, "o /w 0xcf8 %#x", 0x80000000|4<<11|reg)
	monitor(t, v, "o /w 0xcfc %#x", value)
}

// TestQEMU holds what this package knows of QEMU against a real one: realize,
// the two-step region information and the mapped areas, trapped accesses, the
// layout of DMA messages, interrupts, and that it survives our planned end.
func TestQEMU(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a virtual machine")
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	defer l.Close()
	dev, layout := newToy()
	m := &mapper{toy: dev}
	defer func() {
		for _, mapping := range m.other {
			mapping.Close()
		}
	}()
	config := dev.memory[RegionConfig]
	copy(config, []byte{0x34, 0x12, 0x78, 0x56}) // nothing that firmware or kernels know
	config[0x0b] = 0xff                          // class: does not fit any
	fd, bar, err := shm.NewMemory("bar", 64<<10)
	require.NoError(t, err)
	defer unix.Close(fd)
	defer bar.Close()
	areas := &layout.Regions[RegionBAR0]
	areas.FD, areas.Areas = fd, []Area{{0x1000, 0x1000}, {0x4000, 0x2000}}

	conns := make(chan *Conn, 1)
	served := make(chan error, 1)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		sock, err := l.AcceptUnix()
		if err == nil {
			var conn *Conn
			if conn, err = Accept(ctx, sock, Options{}); err == nil {
				conns <- conn
				err = conn.Serve(ctx, layout, m)
			}
		}
		served <- err
	}()
	v, err := vm.Start(context.Background(), vm.Config{
		BootDisk: true, Until: "not awaited", Memory: 128, Args: []string{"-S"},
		Devices: []string{vm.VFIOUser(path, vm.Prop{Name: "addr", Value: "4"})},
	})
	require.NoError(t, err)
	defer func() {
		v.Kill()
		v.Wait()
	}()
	conn := <-conns
	require.Equal(t, Capabilities{MaxTransfer: 1 << 20, MaxDMAMaps: 65535}, conn.Peer())
	require.Contains(t, monitor(t, v, "info pci"), "PCI device 1234:5678")
	require.NotZero(t, dev.see().resets)

	// DMA, which QEMU refuses until the bus master is enabled.
	require.NotNil(t, m.low, "RAM at address 0")
	ram := m.low.Bytes()[0x1000:]
	copy(ram, "from the guest's memory")
	b := make([]byte, 23)
	require.ErrorIs(t, conn.ReadDMA(b, 0x1000), syscall.ENODEV)
	const barAddr = 0xe0000000
	setConfig(t, v, 0x10, barAddr)
	setConfig(t, v, 0x04, 0x06)
	require.NoError(t, conn.ReadDMA(b, 0x1000))
	require.Equal(t, "from the guest's memory", string(b))
	require.NoError(t, conn.WriteDMA([]byte("towards"), 0x1002))
	require.Equal(t, "frtowardsuest's memory", string(ram[:2])+string(ram[2:9])+string(ram[10:23]))
	require.NotEqual(t, dmaLayoutUnknown, DMALayout(conn.dmaLayout.Load()))

	// Trapped and mapped parts of the BAR.
	copy(dev.see().memory[0][0x20:], []byte{0x44, 0x33, 0x22, 0x11})
	copy(bar.Bytes()[0x4010:], []byte{0x88, 0x77, 0x66, 0x55})
	read := func(off int) string {
		out := monitor(t, v, "xp /1wx %#x", barAddr+off)
		return strings.TrimSpace(out[strings.Index(out, ":")+1:])
	}
	require.Equal(t, "0x11223344", read(0x20))
	require.Equal(t, "0x55667788", read(0x4010))
	require.Contains(t, monitor(t, v, "info mtree -f"), "BAR 0 mmaps[1]")

	stop()
	require.ErrorIs(t, <-served, context.Canceled)
	require.NoError(t, conn.Close())
	read(0x20)
	require.Contains(t, monitor(t, v, "info status"), "VM status", "it is still there")
}
