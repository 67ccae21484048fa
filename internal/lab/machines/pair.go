package machines

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vblk-ep/vblk-ep/internal/lab"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// Config of a Pair.
type Config struct {
	// Kernels are what scripts/kernel made.
	Kernels Kernels
	// TrapBARs is as in lab.Config.
	TrapBARs uint8
	// EP and RC are what the two guests have beside what every one has. Their
	// Script, Test and Kernel are not used.
	EP, RC vm.Config
	// Log is told what happens on the link; nil: nobody is.
	Log *slog.Logger
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
	ep, rc  *Guest
	plugged bool // the function belongs into the RC's slot
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
		Slot: (*slot)(p), TrapBARs: cfg.TrapBARs, Log: cfg.Log,
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
	for _, g := range []*Guest{p.EP(), p.RC()} {
		if g != nil {
			g.Kill()
			_, _ = g.Wait()
		}
	}
	p.cancel()
	return errors.Join(<-p.served, p.Lab.Close(), os.RemoveAll(p.dir))
}

// EP returns the endpoint's guest.
func (p *Pair) EP() *Guest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ep
}

// RC returns the root complex's guest.
func (p *Pair) RC() *Guest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rc
}

// StartEP starts the endpoint's guest, which must not run.
func (p *Pair) StartEP() error {
	cfg := p.cfg.EP
	cfg.Kernel = p.cfg.Kernels.ep
	cfg.Devices = append([]string{vm.VFIOUser(filepath.Join(p.dir, "ep"))}, cfg.Devices...)
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

func (p *Pair) kill(at **Guest) {
	p.mu.Lock()
	g := *at
	*at = nil
	p.mu.Unlock()
	g.Kill()
	_, _ = g.Wait()
}

// The root complex's slot: a port with room for the largest BARs that tests use.
const (
	slotID     = "rp0"
	functionID = "function"
	rootPort   = "pcie-root-port,id=" + slotID + ",chassis=1,slot=1,mem-reserve=64M,pref64-reserve=1G"
)

// StartRC starts the root complex's guest, which must not run. If the link is
// started, it has the function from the start.
func (p *Pair) StartRC() error {
	cfg := p.cfg.RC
	cfg.Kernel = p.cfg.Kernels.rc
	cfg.Devices = append([]string{rootPort}, cfg.Devices...)
	_, err := boot(p.ctx, cfg, func(g *Guest) error {
		p.mu.Lock()
		p.rc = g
		plugged := p.plugged
		p.mu.Unlock()
		if plugged {
			return p.add(p.ctx, g)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("the root complex's guest: %w", err)
	}
	return nil
}

// add puts the function into a guest's slot.
func (p *Pair) add(ctx context.Context, g *Guest) error {
	_, err := g.QMP(ctx, "device_add", map[string]any{
		"driver": "vfio-user-pci", "id": functionID, "bus": slotID,
		"socket": map[string]string{"type": "unix", "path": filepath.Join(p.dir, "rc")},
	})
	return err
}

// slot is the root complex's slot, as the link sees it.
type slot Pair

var _ lab.Slot = (*slot)(nil)

// Plug implements lab.Slot.
func (s *slot) Plug(ctx context.Context) error {
	s.mu.Lock()
	s.plugged = true
	g := s.rc
	s.mu.Unlock()
	if g == nil {
		return nil // StartRC will
	}
	return (*Pair)(s).add(ctx, g)
}

// unplugTime is how long a guest may take to let the function go.
const unplugTime = 60 * time.Second

// Unplug implements lab.Slot.
func (s *slot) Unplug(ctx context.Context) error {
	s.mu.Lock()
	s.plugged = false
	g := s.rc
	s.mu.Unlock()
	if g == nil || g.Ended() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, unplugTime)
	defer cancel()
	const deleted = "DEVICE_DELETED"
	before := g.Events(deleted)
	if _, err := g.QMP(ctx, "device_del", map[string]string{"id": functionID}); err != nil {
		return err
	}
	for g.Events(deleted) == before {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the root complex's guest does not let the function go: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
			if g.Ended() {
				return nil
			}
		}
	}
	return nil
}
