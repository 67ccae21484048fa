package machines

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// servant is the work of a guest that runs the scripts that it hears, and prints
// after each a line with its number and its status. What a script leaves running
// goes on. On a console that somebody looks at, there is a shell.
const servant = `
	PATH=$PATH:/work
	if [ -n "$CONSOLE_SHELL" ]; then
		tty=/dev/$(cat /sys/class/tty/console/active)
		while :; do setsid sh -c "exec sh -i <$tty >$tty 2>&1"; done &
	fi
	say up
	n=0
	while line=$(hear); do
		n=$((n + 1))
		echo "$line" | base64 -d >/tmp/script
		sh -e /tmp/script </dev/null 2>&1
		printf '\n==> %d %d\n' $n $?
	done
`

// Guest is a running guest that runs scripts.
type Guest struct {
	*vm.VM

	mu  sync.Mutex // held while a script runs
	out *output
	n   int // scripts so far
}

// output is what a guest printed and nobody has taken yet.
type output struct {
	mu      sync.Mutex
	text    []byte
	changed chan struct{} // closed and replaced when there is more
}

func newOutput() *output { return &output{changed: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	close(o.changed)
	o.changed = make(chan struct{})
	return len(p), nil
}

// take takes what stands before the line that begins with end, and the rest of
// that line. While it is not there, status is empty.
func (o *output) take(end string) (text, status string, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before, after, found := bytes.Cut(o.text, []byte(end))
	line, rest, whole := bytes.Cut(after, []byte("\n"))
	if !found || !whole {
		return "", "", o.changed
	}
	text, status = string(before), string(line)
	o.text = bytes.Clone(rest)
	return text, status, o.changed
}

// upTime is how long a guest may take to come up.
const upTime = 5 * time.Minute

// awaitUp waits until the guest is up.
func (g *Guest) awaitUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, upTime)
	defer cancel()
	return g.Expect(ctx, "up")
}

// boot starts a guest and waits until it is up. ready is called, if it is not nil,
// as soon as there is a machine; more than once, if the guest is stillborn.
func boot(ctx context.Context, cfg vm.Config, ready func(*Guest) error) (g *Guest, err error) {
	cfg.Script = servant
	if cfg.LiveConsole != nil {
		cfg.Script = "CONSOLE_SHELL=yes\n" + servant
	}
	err = vm.UntilBorn(func() (err error) {
		g = &Guest{out: newOutput()}
		cfg.Live = g.out
		if g.VM, err = vm.Start(ctx, cfg); err != nil {
			return err
		}
		if ready != nil {
			err = ready(g)
		}
		if err == nil {
			err = g.awaitUp(ctx)
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

// reset resets the machine and waits until its guest is up again.
func (g *Guest) reset(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.QMP(ctx, "system_reset", nil); err != nil {
		return err
	}
	if err := g.awaitUp(ctx); err != nil {
		return err
	}
	g.n = 0
	g.out.mu.Lock()
	defer g.out.mu.Unlock()
	g.out.text = nil
	return nil
}

// Failure says that a script failed in a guest.
type Failure struct {
	Status int
	Script string
	Output string
}

func (f *Failure) Error() string {
	return fmt.Sprintf("status %d of %q:\n%s", f.Status, f.Script, f.Output)
}

// Run runs a shell script, which ends with its first command that fails, and
// returns what it printed. The error is a *Failure if it ran and failed.
func (g *Guest) Run(ctx context.Context, script string) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
	if err := g.Say(ctx, base64.StdEncoding.EncodeToString([]byte(script))); err != nil {
		return "", err
	}
	end := fmt.Sprintf("\n==> %d ", g.n)
	for {
		text, status, changed := g.out.take(end)
		if status != "" {
			return text, verdict(script, text, status)
		}
		select {
		case <-changed:
		case <-g.Done():
			_, end := g.Wait()
			return "", fmt.Errorf("the guest has ended: %w", end)
		case <-ctx.Done():
			return "", fmt.Errorf("wait for the end of a script: %w", context.Cause(ctx))
		}
	}
}

// Runs says whether there is a guest, and it has not ended.
func (g *Guest) Runs() bool {
	if g == nil {
		return false
	}
	select {
	case <-g.Done():
		return false
	default:
		return true
	}
}

func verdict(script, text, status string) error {
	n, err := strconv.Atoi(strings.TrimSpace(status))
	if err != nil {
		return fmt.Errorf("a guest printed a status %q", status)
	}
	if n != 0 {
		return &Failure{Status: n, Script: script, Output: text}
	}
	return nil
}
