package machines

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/vblk-ep/vblk-ep/internal/lab"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// Config of a Pair.
type Config struct {
	// Kernels are what scripts/kernel made.
	Kernels Kernels
	// TrapBARs, Doorbell16 and Forgetful are as in lab.Config.
	TrapBARs              uint8
	Doorbell16, Forgetful bool
	// IOMMU puts one between the endpoint's memory and what is on its bus.
	IOMMU bool
	// EP and RC are what the two guests have beside what every one has. Their
	// Script, Test and Kernel are not used.
	EP, RC vm.Config
	// Log is told what happens on the link; nil: nobody is.
	Log *slog.Logger

	disk string // the file of the endpoint's disk, if it has one
}

// Pair is two running guests with a link between them.
type Pair struct {
	Lab *lab.Lab

	cfg    Config
	dir    string // of the sockets
	ctx    context.Context
	cancel context.CancelFunc
	served chan error

	mu      sync.Mutex
	ep, rc  *vm.Shell
	plugged []int // the functions that belong into the RC's slot
	used    int   // root ports of rc that have been used
}

// Start starts the link and both guests, and returns when they are up. The pair
// must be closed.
func Start(ctx context.Context, cfg Config) (_ *Pair, err error) {
	p := &Pair{cfg: cfg, served: make(chan error, 1)}
	if p.dir, err = os.MkdirTemp("", "lab-"); err != nil {
		return nil, err
	}
	p.Lab, err = lab.New(lab.Config{
		EndpointSocket: filepath.Join(p.dir, "ep"), HostSocket: filepath.Join(p.dir, "rc"),
		Slot: (*slot)(p), TrapBARs: cfg.TrapBARs, Doorbell16: cfg.Doorbell16, Forgetful: cfg.Forgetful, Log: cfg.Log,
	})
	if err != nil {
		_ = os.RemoveAll(p.dir)
		return nil, err
	}
	p.ctx, p.cancel = context.WithCancel(ctx)
	go func() { p.served <- p.Lab.Serve(p.ctx) }()
	defer func() {
		if err != nil {
			_ = p.Close()
		}
	}()
	var g errgroup.Group
	g.Go(p.StartEP)
	g.Go(p.StartRC)
	if err = g.Wait(); err != nil {
		return nil, err
	}
	return p, nil
}

// Close ends the guests and the link.
func (p *Pair) Close() error {
	p.cancel() // kills both, and whoever holds p.mu need not wait for them
	for _, g := range []*vm.Shell{p.EP(), p.RC()} {
		if g != nil {
			_, _ = g.Wait()
		}
	}
	return errors.Join(<-p.served, p.Lab.Close(), os.RemoveAll(p.dir))
}

// EP returns the endpoint's guest.
func (p *Pair) EP() *vm.Shell {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ep
}

// RC returns the root complex's guest.
func (p *Pair) RC() *vm.Shell {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rc
}

// endpointMemory is the memory of the endpoint's guest in MiB. With less than 512 the
// kernel gives nobody large pages.
const endpointMemory = 768

// StartEP starts the endpoint's guest, which must not run.
func (p *Pair) StartEP() error {
	cfg := p.cfg.EP
	cfg.Kernel = p.cfg.Kernels.ep
	cfg.Memory = endpointMemory
	cfg.Devices = append([]string{vm.VFIOUser(filepath.Join(p.dir, "ep"))}, cfg.Devices...)
	if p.cfg.IOMMU { // first: QEMU asks for it when it makes the controller
		cfg.Devices = append([]string{"virtio-iommu-pci"}, cfg.Devices...)
	}
	g, err := boot(p.ctx, cfg, nil)
	if err != nil {
		return fmt.Errorf("the endpoint's guest: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ep = g
	return nil
}

// KillEP cuts the power of the endpoint's guest.
func (p *Pair) KillEP() { p.kill(&p.ep) }

// KillRC cuts the power of the root complex's guest.
func (p *Pair) KillRC() { p.kill(&p.rc) }

// ResetRC resets the root complex's guest and waits until it is up again. Its
// configuration has to allow that (vm.Config.Reboot).
func (p *Pair) ResetRC(ctx context.Context) error { return p.RC().Reset(ctx) }

func (p *Pair) kill(at **vm.Shell) {
	p.mu.Lock()
	g := *at
	*at = nil
	p.mu.Unlock()
	g.Kill()
	_, _ = g.Wait()
}

// Root ports of the root complex, each with room for the BARs that tests use. One
// is used for each start of the link, because QEMU (11.1) aborts when it takes out a
// vfio-user function that has MSI-X: one whose link has ended stays where it is,
// reads ones, and is for the guest to remove.
const ports = 4

func rootPorts() (devices []string) {
	for n := range ports {
		devices = append(devices, fmt.Sprintf("pcie-root-port,id=port%d,chassis=%d,slot=%d,mem-reserve=16M,pref64-reserve=64M", n, n, n))
	}
	return devices
}

// StartRC starts the root complex's guest, which must not run. If the link is
// started, it has the device from the start.
func (p *Pair) StartRC() error {
	cfg := p.cfg.RC
	cfg.Kernel = p.cfg.Kernels.rc
	cfg.Devices = append(rootPorts(), cfg.Devices...)
	_, err := boot(p.ctx, cfg, func(g *vm.Shell) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.rc, p.used = g, 0
		return p.add(p.ctx)
	})
	if err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.rc = nil
		return fmt.Errorf("the root complex's guest: %w", err)
	}
	return nil
}

// add puts the device, if there is one, into the root complex's next port. The caller
// holds p.mu.
func (p *Pair) add(ctx context.Context) error {
	if len(p.plugged) == 0 {
		return nil
	}
	if p.used == ports {
		return fmt.Errorf("all %d root ports have been used; the root complex's guest has to be started anew", ports)
	}
	port := p.used
	p.used++
	for _, n := range slices.Backward(p.plugged) {
		_, err := p.rc.QMP(ctx, "device_add", map[string]any{
			"driver": "vfio-user-pci", "id": fmt.Sprintf("device%d.%d", port, n), "bus": fmt.Sprintf("port%d", port),
			"addr": fmt.Sprintf("0.%d", n), "multifunction": len(p.plugged) > 1,
			"socket": map[string]string{"type": "unix", "path": p.Lab.HostSocket(n)},
		})
		if err != nil {
			return fmt.Errorf("function %d: %w", n, err)
		}
	}
	return nil
}

// slot is the root complex's slot, as the link sees it.
type slot Pair

var _ lab.Slot = (*slot)(nil)

// Plug implements lab.Slot.
func (s *slot) Plug(ctx context.Context, functions []int) error {
	p := (*Pair)(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plugged = functions
	if p.rc == nil {
		return nil // StartRC will
	}
	return p.add(ctx)
}

// Unplug implements lab.Slot.
func (s *slot) Unplug(context.Context) error {
	p := (*Pair)(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plugged = nil
	return nil
}
