package vm

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// The reasons for which we end a machine ourselves.
var (
	errFound   = errors.New("the text that was waited for has appeared")
	errStopped = errors.New("the test stopped the guest")
	errDead    = errors.New("the kernel crashed")
	errStuck   = errors.New("the guest did not power off after its work")
)

// ErrStillborn says that a guest has not come up and said nothing for birthTime, or only
// that it hangs for some of these, or that one of its processors tripped over an
// instruction that another was changing. Under emulation both happen about once in a
// hundred boots of several processors on a busy machine, also without any device of
// ours. So far nothing but the bus's own code has looked at a device: [Run] and
// [UntilBorn] try again, and a guest that may reset itself is reset.
var ErrStillborn = errors.New("the guest did not come up")

var birthTime = 45 * time.Second // shorter in a test

// maxLooks is how often a guest may take birthTime and say something.
const maxLooks = 4

// maxBirths is how often a guest is started that is stillborn.
const maxBirths = 3

// watchBirth sees to it that no guest hangs before it is up, neither after the start
// nor after a reset.
func (v *VM) watchBirth(ctx context.Context) {
	for before, said, look, try := 0, 0, 1, 1; ; {
		select {
		case <-v.qmp.resets:
			before, look = v.report.upCount(), 1
			continue
		case <-time.After(birthTime):
		case <-ctx.Done():
			return
		}
		heard := len(v.console.String())
		switch {
		case v.report.upCount() > before:
			try = 1
			select {
			case <-v.qmp.resets:
				before, look = v.report.upCount(), 1
			case <-ctx.Done():
				return
			}
		case heard > said && look < maxLooks: // it is slow
			look++
		case v.cfg.Reboot && try < maxBirths:
			try++
			_, _ = v.QMP(ctx, "system_reset", nil) // the next look tells
		default:
			v.cancel(ErrStillborn)
			return
		}
		said = heard
	}
}

// crash matches what a kernel says when it is beyond repair. A soft lock-up is
// not that: a slow machine makes the watchdog say so.
var crash = regexp.MustCompile(`(?m)^(\[[^]]*\] )?(Kernel panic|BUG: |Oops|Internal error: |general protection fault|Unable to handle kernel).*$`)

// conclude decides whether the run succeeded.
func (v *VM) conclude(exit error, exited bool, reportErr, cause error) error {
	if line := crash.FindString(v.result.Console); line != "" {
		if strings.Contains(line, "int3") && v.result.Ups == 0 {
			return fmt.Errorf("vm: %w: %s", ErrStillborn, line)
		}
		return fmt.Errorf("vm: the kernel crashed: %s\n%s", line, tail(v.result.Console, 60))
	}
	if v.cfg.BootDisk && (errors.Is(cause, errFound) || cause == nil) && v.foundUntil() {
		return nil
	}
	if cause != nil {
		return fmt.Errorf("vm: %w%s", cause, v.evidence())
	}
	if exit != nil {
		return fmt.Errorf("vm: QEMU: %w: %s", exit, tail(v.result.QEMU, 10))
	}
	if reportErr != nil {
		return reportErr
	}
	if !exited {
		return fmt.Errorf("vm: the guest ended without a report%s", v.evidence())
	}
	if v.result.Status != 0 {
		return &ExitError{Status: v.result.Status, Output: tail(v.result.Output, 60)}
	}
	if v.cfg.Test != "" {
		return checkTests(v.result.Output)
	}
	return nil
}

// foundUntil says whether the text that shows success has appeared.
func (v *VM) foundUntil() bool {
	return strings.Contains(v.result.Console, v.cfg.Until) || strings.Contains(v.result.Debug, v.cfg.Until)
}

// evidence is what helps to understand why a guest did not do its work.
func (v *VM) evidence() string {
	return fmt.Sprintf("\nQEMU: %s\nwork: %s\nconsole: %s\nfirmware: %s",
		tail(v.result.QEMU, 5), tail(v.result.Output, 20),
		tail(v.result.Console, 20), tail(v.result.Firmware, 5))
}

// watchConsole ends the machine some time after the kernel crashed, so that
// what it has to say about it is complete.
func (v *VM) watchConsole(ctx context.Context) {
	for {
		v.console.mu.Lock()
		dead, changed := crash.Match(v.console.text), v.console.changed
		v.console.mu.Unlock()
		if dead {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
	select {
	case <-time.After(2 * time.Second):
		v.cancel(errDead)
	case <-ctx.Done():
	}
}

// watchUntil ends the machine when the text that shows success has appeared.
func (v *VM) watchUntil(ctx context.Context) {
	found := make(chan error, 2)
	for _, c := range []*capture{v.console, v.debug} {
		go func() { found <- c.waitFor(ctx, v.cfg.Until) }()
	}
	for range 2 {
		if <-found == nil {
			v.cancel(errFound)
		}
	}
}
