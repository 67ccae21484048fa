package machines

import (
	"context"
	"fmt"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// What guests do before they run scripts. On a console that somebody looks at, there
// is a shell.
const (
	setUp   = "PATH=$PATH:/work\n"
	console = `
		tty=/dev/$(cat /sys/class/tty/console/active)
		while :; do setsid sh -c "exec sh -i <$tty >$tty 2>&1"; done &
	`
)

// boot starts a guest and waits until it is up. ready is called, if it is not nil,
// as soon as there is a machine; more than once, if the guest is stillborn.
func boot(ctx context.Context, cfg vm.Config, ready func(*vm.Shell) error) (g *vm.Shell, err error) {
	cfg.Script = setUp
	if cfg.LiveConsole != nil {
		cfg.Script += console
	}
	err = vm.UntilBorn(func() (err error) {
		if g, err = vm.StartShell(ctx, cfg); err != nil {
			return err
		}
		if ready != nil {
			err = ready(g)
		}
		if err == nil {
			err = g.AwaitUp(ctx)
		}
		if err != nil {
			g.Kill()
			_, end := g.Wait()
			return fmt.Errorf("%w: %w", err, end)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}
