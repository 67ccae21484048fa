package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

// Slot is the place in the root complex's guest that the function is plugged
// into. The calls come one at a time and may take as long as a guest takes.
type Slot interface {
	// Plug puts a device into the slot that has these functions, each of which is
	// served at its [Lab.HostSocket]. The first one is always function 0, which
	// has to be plugged in last: by it the root complex knows that a device is there.
	Plug(ctx context.Context, functions []int) error
	// Unplug says that the device is no more, so that it can be taken out.
	Unplug(ctx context.Context) error
}

// Config of a Lab.
type Config struct {
	// EndpointSocket and HostSocket are paths of the sockets for the two guests.
	// That for the root complex is the first function's: see [Lab.HostSocket].
	EndpointSocket, HostSocket string
	// Slot is told when the endpoint starts and stops the link; nil if the root
	// complex's guest has the function from its start.
	Slot Slot
	// TrapBARs has a bit for each BAR that is never mapped into the root complex's
	// guest, so that the endpoint can move all of it while the link is up.
	TrapBARs uint8
	// Doorbell16 makes the controller's doorbell take writes of 16 bits, too.
	Doorbell16 bool
	// Forgetful makes a reset by the root complex (PERST#) take away what the endpoint
	// programmed: it has to do it again, and to start the link.
	Forgetful bool
	// Log is told what happens on the link; nil: nobody is.
	Log *slog.Logger
}

// Lab is a link between two guests.
type Lab struct {
	cfg   Config
	log   *slog.Logger
	ep    *net.UnixListener
	hosts [numFunctions]*net.UnixListener

	// mu guards the controller's registers, the functions, and what follows from
	// them. It is not held while anything is waited for.
	mu          sync.Mutex
	control     uint32
	obErrorAddr uint64
	obErrors    uint32
	functions   [numFunctions]function
	windows     [numWindows]mapping
	used        bool          // the RC has enabled a function since it was reset
	dropped     bool          // by a fault
	forgotten   bool          // the link was started; what it showed was taken away
	starts      uint64        // how often the link was started
	changed     chan struct{} // closed and replaced when the link's state changes

	// What the data paths ask for.
	epNow    atomic.Pointer[epSession]
	outbound atomic.Pointer[[]target] // sorted by offset
	linkUp   atomic.Bool

	channels [numChannels]channel
	stats    stats
}

// New makes the sockets. The lab must be closed.
func New(cfg Config) (*Lab, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Lab{cfg: cfg, log: cfg.Log, changed: make(chan struct{})}
	for n := range l.functions {
		l.functions[n].init(l, n)
	}
	l.outbound.Store(new([]target))
	for n := range l.channels {
		l.channels[n].init(l, n)
	}
	var err error
	if l.ep, err = listen(cfg.EndpointSocket); err != nil {
		return nil, err
	}
	for n := range l.hosts {
		if l.hosts[n], err = listen(l.HostSocket(n)); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// HostSocket returns the path of the socket of a function: that of the
// configuration for the first one, with ".1" at its end for the second, and so on.
func (l *Lab) HostSocket(function int) string {
	if function == 0 {
		return l.cfg.HostSocket
	}
	return fmt.Sprintf("%s.%d", l.cfg.HostSocket, function)
}

// listen makes a socket for this user's guests. One that is left from an earlier
// run is replaced.
func listen(path string) (*net.UnixListener, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == fs.ModeSocket {
		_ = os.Remove(path)
	}
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}

// Close takes the sockets away. Serve must have returned.
func (l *Lab) Close() (err error) {
	for _, at := range append(l.hosts[:], l.ep) {
		if at != nil {
			vfiouser.TurnAway(at)
			err = errors.Join(err, at.Close())
		}
	}
	return err
}

// Serve serves both guests until ctx ends: one endpoint after the other, and of the
// root complexes, for each function, the one that the link leads to.
func (l *Lab) Serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.accept(ctx, l.ep, 1, l.serveEndpoint) })
	for n, at := range l.hosts {
		g.Go(func() error { return l.accept(ctx, at, maxHosts, l.functions[n].serveHost) })
	}
	if l.cfg.Slot != nil {
		g.Go(func() error { l.attend(ctx); return nil })
	}
	return g.Wait()
}

// maxHosts bounds the root complexes that are connected to a function, nearly all of which have
// seen their link being stopped.
const maxHosts = 64

// accept serves up to n clients at a time.
func (l *Lab) accept(ctx context.Context, at *net.UnixListener, n int, serve func(context.Context, *net.UnixConn) error) error {
	stop := context.AfterFunc(ctx, func() { _ = at.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var clients errgroup.Group
	clients.SetLimit(n)
	defer func() { _ = clients.Wait() }()
	for {
		sock, err := at.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = sock.Close()
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		clients.Go(func() error {
			if err := serve(ctx, sock); err != nil && ctx.Err() == nil {
				l.log.Info("a guest's connection ended", "socket", at.Addr(), "err", err)
			}
			return nil
		})
	}
}

// attend keeps the root complex's slot as the endpoint wants it.
func (l *Lab) attend(ctx context.Context) {
	var plugged uint64 // the start of the link for which the device is in the slot
	for {
		l.mu.Lock()
		want, functions, changed := l.starts, l.present(), l.changed
		if !l.started() {
			want = 0
		}
		l.mu.Unlock()
		var err error
		switch {
		case plugged == want:
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		case plugged != 0:
			err = l.cfg.Slot.Unplug(ctx)
			plugged = 0
		default:
			err = l.cfg.Slot.Plug(ctx, functions)
			plugged = want
		}
		if err != nil && ctx.Err() == nil {
			l.log.Error("the root complex's slot", "err", err)
		}
	}
}

// signal tells those who wait that the link's state has changed. The caller
// holds l.mu.
func (l *Lab) signal() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// await waits until the condition, which is checked under l.mu, holds.
func (l *Lab) await(ctx context.Context, what string, condition func() bool) error {
	for {
		l.mu.Lock()
		ok, changed := condition(), l.changed
		l.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("lab: wait until %s: %w", what, context.Cause(ctx))
		}
	}
}

// AwaitLink waits until the link is up, or down.
func (l *Lab) AwaitLink(ctx context.Context, up bool) error {
	return l.await(ctx, fmt.Sprintf("the link is up: %v", up), func() bool { return l.linkUp.Load() == up })
}
