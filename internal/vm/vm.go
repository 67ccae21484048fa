package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Result is what a guest left behind.
type Result struct {
	Status   int    // the exit status of the work
	Output   string // what the work printed, errors included
	Console  string // the kernel's console; with BootDisk, the serial port
	Debug    string // what was written to I/O port 0xe9
	Firmware string // the firmware's own log
	QEMU     string // what QEMU complained about

	Kernel string        // the version, as uname -r has it
	Up     time.Duration // from the start of QEMU to the guest's first process
	Total  time.Duration // from the start of QEMU to its end
	Ups    int           // how often the guest came up; more than 1 after a reboot
}

// ExitError says that the guest did its work and the work failed.
type ExitError struct {
	Status int
	Output string // the end of what the work printed
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("vm: the work exited with status %d:\n%s", e.Status, e.Output)
}

// VM is a running guest.
type VM struct {
	cfg    Config
	guest  bootSet
	dir    string
	ports  ports
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when QEMU is gone and everything was read

	console, output, debug, firmware *capture
	report                           *report
	qmp                              *qmp
	stderr                           bytes.Buffer
	begin                            time.Time

	mu     sync.Mutex
	up     time.Duration
	result Result
	err    error
}

// Run boots a guest, waits for its end, and returns what it left behind. The
// error is nil only when the guest reported that its work succeeded: the status
// 0 of a script, tests that ran and passed, or the text that BootDisk waits
// for. It is an *[ExitError] when the work ran and failed. The result is filled
// as far as it goes in either case.
func Run(ctx context.Context, cfg Config) (Result, error) {
	v, err := Start(ctx, cfg)
	if err != nil {
		return Result{}, err
	}
	return v.Wait()
}

// Start boots a guest and returns as soon as QEMU has set up all its devices.
// What the cache lacks is fetched first. The caller must call [VM.Wait], which
// releases everything; ending ctx kills the guest.
func Start(ctx context.Context, cfg Config) (*VM, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	q, err := findQEMU(ctx, cfg.Kernel.Arch)
	if err != nil {
		return nil, err
	}
	g, err := fetchGuest(ctx, cfg.Kernel)
	if err != nil {
		return nil, err
	}
	v := &VM{
		cfg: cfg, guest: g, done: make(chan struct{}),
		console: newCapture(), output: newCapture(), debug: newCapture(), firmware: newCapture(),
	}
	if v.dir, err = os.MkdirTemp("", "vblk-vm-*"); err != nil {
		return nil, fmt.Errorf("vm: make a folder for the run: %w", err)
	}
	if err := v.start(ctx, q); err != nil {
		_ = os.RemoveAll(v.dir)
		return nil, err
	}
	select {
	case <-v.qmp.greeting:
	case <-v.done:
		_, err := v.Wait()
		return nil, err
	}
	if _, err := v.qmp.call(ctx, "qmp_capabilities", nil); err != nil {
		v.cancel(err)
		_, err := v.Wait()
		return nil, err
	}
	return v, nil
}

// start launches QEMU and everything that listens to it.
func (v *VM) start(ctx context.Context, q qemu) (err error) {
	initrd := filepath.Join(v.dir, "initrd")
	if !v.cfg.BootDisk {
		overlay, err := v.cfg.overlay(v.guest.arch)
		if err != nil {
			return err
		}
		if err := concatenate(initrd, v.guest.archives, overlay); err != nil {
			return err
		}
	}
	if v.ports, err = newPorts(); err != nil {
		return err
	}
	v.qmp = newQMP(v.ports.qmp)
	v.report = &report{
		port: v.ports.report, changed: make(chan struct{}),
		onUp: v.noteUp, onExit: v.expectPowerOff,
	}

	ctx, v.cancel = context.WithCancelCause(ctx)
	ctx, stop := context.WithTimeoutCause(ctx, v.cfg.Timeout,
		fmt.Errorf("the guest was not done within %v", v.cfg.Timeout))
	words := append(append([]string{}, q.command...), arguments(v.cfg, v.guest, initrd)...)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = append(os.Environ(), q.env...)
	cmd.Stderr = &v.stderr
	// QEMU must not outlive us, whichever way we end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	for _, p := range v.ports.all() {
		cmd.ExtraFiles = append(cmd.ExtraFiles, p.theirs)
	}

	started := make(chan error)
	go func() {
		defer stop()
		// The kernel sends the parent-death signal when the thread that forked
		// ends, so that thread must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		v.begin = time.Now()
		err := cmd.Start()
		for _, p := range v.ports.all() {
			_ = p.theirs.Close()
		}
		started <- err
		if err != nil {
			return
		}
		v.follow(ctx, cmd)
	}()
	if err := <-started; err != nil {
		v.cancel(nil)
		v.ports.close()
		return fmt.Errorf("vm: start QEMU: %w", err)
	}
	return nil
}

// follow reads the ports until QEMU ends, and draws the conclusion.
func (v *VM) follow(ctx context.Context, cmd *exec.Cmd) {
	var readers sync.WaitGroup
	for p, c := range map[*port]*capture{
		v.ports.console: v.console, v.ports.output: v.output,
		v.ports.debug: v.debug, v.ports.firmware: v.firmware,
	} {
		readers.Go(func() {
			_, _ = io.Copy(c, p)
			c.end()
		})
	}
	readers.Go(v.report.listen)
	readers.Go(v.qmp.listen)
	var watchers sync.WaitGroup
	watchers.Go(func() { v.watchConsole(ctx) })
	if v.cfg.BootDisk {
		watchers.Go(func() { v.watchUntil(ctx) })
	}

	exit := cmd.Wait()
	total := time.Since(v.begin)
	readers.Wait()
	cause := context.Cause(ctx)
	v.cancel(nil)
	watchers.Wait()
	v.ports.close()
	_ = os.RemoveAll(v.dir)

	status, exited, reportErr := v.report.verdict()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.result = Result{
		Status: status, Output: v.output.String(), Console: v.console.String(),
		Debug: v.debug.String(), Firmware: v.firmware.String(), QEMU: v.stderr.String(),
		Kernel: v.guest.version, Up: v.up, Total: total, Ups: v.report.ups,
	}
	v.err = v.conclude(exit, exited, reportErr, cause)
	close(v.done)
}

// concatenate writes the archives and the overlay to one file.
func concatenate(name string, archives []string, overlay []byte) error {
	out, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("vm: write the initial file system: %w", err)
	}
	defer func() { _ = out.Close() }()
	for _, a := range archives {
		in, err := os.Open(a)
		if err != nil {
			return fmt.Errorf("vm: read the initial file system: %w", err)
		}
		_, err = io.Copy(out, in)
		_ = in.Close()
		if err != nil {
			return fmt.Errorf("vm: write the initial file system: %w", err)
		}
	}
	if _, err := out.Write(overlay); err != nil {
		return fmt.Errorf("vm: write the initial file system: %w", err)
	}
	return nil
}

// The reasons for which we end a machine ourselves.
var (
	errFound   = errors.New("the text that was waited for has appeared")
	errStopped = errors.New("the test stopped the guest")
	errDead    = errors.New("the kernel crashed")
	errStuck   = errors.New("the guest did not power off after its work")
)

// crash matches what a kernel says when it is beyond repair. A soft lock-up is
// not that: a slow machine makes the watchdog say so.
var crash = regexp.MustCompile(`(?m)^(\[[^]]*\] )?(Kernel panic|BUG: |Oops|Internal error: |general protection fault|Unable to handle kernel).*$`)

// conclude decides whether the run succeeded.
func (v *VM) conclude(exit error, exited bool, reportErr, cause error) error {
	if line := crash.FindString(v.result.Console); line != "" {
		return fmt.Errorf("vm: the kernel crashed: %s\n%s", line, tail(v.result.Console, 60))
	}
	if errors.Is(cause, errFound) {
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

// evidence is what helps to understand why a guest did not do its work.
func (v *VM) evidence() string {
	return fmt.Sprintf("\nQEMU: %s\nwork: %s\nconsole: %s", tail(v.result.QEMU, 5),
		tail(v.result.Output, 20), tail(v.result.Console, 20))
}

func (v *VM) noteUp() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.up == 0 {
		v.up = time.Since(v.begin)
	}
}

// powerOffTime is how long a guest may take to power off after its work.
const powerOffTime = 20 * time.Second

func (v *VM) expectPowerOff() {
	t := time.AfterFunc(powerOffTime, func() { v.cancel(errStuck) })
	go func() {
		<-v.done
		t.Stop()
	}()
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

// Wait waits for the end of the guest and returns what [Run] returns. It may
// be called more than once.
func (v *VM) Wait() (Result, error) {
	<-v.done
	return v.result, v.err
}

// Kill ends the guest at once. [VM.Wait] then returns an error unless the work
// was done already.
func (v *VM) Kill() { v.cancel(errStopped) }

// Say tells the work one line, which its "hear" or "expect" takes.
func (v *VM) Say(line string) error { return v.report.say(line) }

// Hear waits for the next line of the work's "say" and returns it. It returns
// an error when the work has ended.
func (v *VM) Hear(ctx context.Context) (string, error) { return v.report.hear(ctx) }

// Expect waits for the next line of the work's "say" and returns an error
// unless it is want.
func (v *VM) Expect(ctx context.Context, want string) error {
	got, err := v.Hear(ctx)
	if err != nil {
		return fmt.Errorf("vm: expected %q: %w", want, err)
	}
	if got != want {
		return fmt.Errorf("vm: expected the guest to say %q, heard %q", want, got)
	}
	return nil
}

// WaitConsole waits until the text has appeared on the console.
func (v *VM) WaitConsole(ctx context.Context, text string) error {
	return v.console.waitFor(ctx, text)
}

// WaitOutput waits until the work has printed the text.
func (v *VM) WaitOutput(ctx context.Context, text string) error {
	return v.output.waitFor(ctx, text)
}

// Console returns what the console showed so far.
func (v *VM) Console() string { return v.console.String() }

// QMP runs a command of QEMU's machine protocol, for example "system_reset";
// args is its arguments as something that marshals to a JSON object, or nil.
func (v *VM) QMP(ctx context.Context, command string, args any) (json.RawMessage, error) {
	return v.qmp.call(ctx, command, args)
}

// Events returns how often an event of QEMU's machine protocol has happened,
// for example "RESET".
func (v *VM) Events(name string) int { return v.qmp.count(name) }
