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
	"runtime"
	"strings"
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
	Firmware string // the log of SeaBIOS; others print on the console
	QEMU     string // what QEMU complained about

	Kernel string        // the version, as uname -r has it; with BootDisk, nothing
	Up     time.Duration // from the start of QEMU until the guest said that it is up
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
	ports  ports
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when QEMU is gone and everything was read

	console, output, debug, firmware *capture
	report                           *report
	qmp                              *qmp
	stderr                           bytes.Buffer
	begin                            time.Time
	pid                              int

	mu     sync.Mutex
	up     time.Duration
	result Result
	err    error
}

// Run boots a guest, waits for its end, and returns what it left behind. The
// error is nil only when the guest reported that its work succeeded: the status
// 0 of a script, tests that ran and passed, or the text that BootDisk waits
// for. It is an *[ExitError] when the work ran and failed. The result is filled
// as far as it goes in either case. A guest that is stillborn is started again.
func Run(ctx context.Context, cfg Config) (res Result, err error) {
	err = UntilBorn(func() error {
		v, err := Start(ctx, cfg)
		if err != nil {
			return err
		}
		res, err = v.Wait()
		return err
	})
	return res, err
}

// UntilBorn calls start, which starts a guest, until its error is not
// [ErrStillborn], at most three times, and returns the last error.
func UntilBorn(start func() error) (err error) {
	for range maxBirths {
		if err = start(); !errors.Is(err, ErrStillborn) {
			break
		}
	}
	return err
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
	g, err := fetch(ctx, cfg)
	if err != nil {
		return nil, err
	}
	v := &VM{
		cfg: cfg, guest: g, done: make(chan struct{}),
		console: newCapture(), output: newCapture(), debug: newCapture(), firmware: newCapture(),
	}
	if err := v.start(ctx, q); err != nil {
		return nil, err
	}
	select {
	case <-v.qmp.greeting:
	case <-v.done:
		_, err := v.Wait()
		return nil, err
	}
	// QEMU answers only once its devices are there.
	if _, err := v.qmp.call(ctx, "qmp_capabilities", nil); err != nil {
		select {
		case <-v.done: // QEMU's own complaint says more than ours
		case <-time.After(5 * time.Second):
			v.cancel(err)
		}
		_, err := v.Wait()
		return nil, err
	}
	return v, nil
}

// start launches QEMU and everything that listens to it.
func (v *VM) start(ctx context.Context, q qemu) (err error) {
	var initrd []*os.File
	if !v.cfg.BootDisk {
		overlay, err := v.cfg.overlay(v.guest.arch)
		if err != nil {
			return err
		}
		f, err := concatenate(v.guest.archives, overlay)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		initrd = append(initrd, f)
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
	words := append(append([]string{}, q.command...), arguments(v.cfg, v.guest)...)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = append(os.Environ(), q.env...)
	cmd.Stderr = &v.stderr
	// QEMU must not outlive us, whichever way we end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	for _, p := range v.ports.all() {
		cmd.ExtraFiles = append(cmd.ExtraFiles, p.theirs)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, initrd...)

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
		if err != nil {
			started <- err
			return
		}
		v.pid = cmd.Process.Pid
		started <- nil
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
		to := io.Writer(c)
		if c == v.output && v.cfg.Live != nil {
			to = io.MultiWriter(c, v.cfg.Live)
		}
		if c == v.console && v.cfg.LiveConsole != nil {
			to = io.MultiWriter(c, v.cfg.LiveConsole)
		}
		readers.Go(func() {
			_, _ = io.Copy(to, p)
			_, _ = io.Copy(io.Discard, p) // QEMU must not block on us
			c.end()
		})
	}
	readers.Go(v.report.listen)
	readers.Go(v.qmp.listen)
	var watchers sync.WaitGroup
	watchers.Go(func() { v.watchConsole(ctx) })
	if v.cfg.BootDisk {
		watchers.Go(func() { v.watchUntil(ctx) })
	} else {
		watchers.Go(func() { v.watchBirth(ctx) })
	}

	exit := cmd.Wait()
	total := time.Since(v.begin)
	readers.Wait()
	cause := context.Cause(ctx)
	v.cancel(nil)
	watchers.Wait()
	v.ports.close()

	status, exited, reportErr := v.report.verdict()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.result = Result{
		Status: status, Output: v.output.String(), Console: v.console.String(),
		Debug: v.debug.String(), Firmware: v.firmware.String(), QEMU: v.stderr.String(),
		Kernel: v.guest.version, Up: v.up, Total: total, Ups: v.report.upCount(),
	}
	v.err = v.conclude(exit, exited, reportErr, cause)
	close(v.done)
}

// concatenate writes the archives and the overlay to a file without a name,
// which is gone when nobody has it open.
func concatenate(archives []string, overlay []byte) (_ *os.File, err error) {
	out, err := os.CreateTemp("", "vblk-initrd-*")
	if err != nil {
		return nil, fmt.Errorf("vm: write the initial file system: %w", err)
	}
	_ = os.Remove(out.Name())
	defer func() {
		if err != nil {
			_ = out.Close()
			err = fmt.Errorf("vm: write the initial file system: %w", err)
		}
	}()
	for _, a := range archives {
		in, err := os.Open(a)
		if err != nil {
			return nil, err
		}
		_, err = io.Copy(out, in)
		_ = in.Close()
		if err != nil {
			return nil, err
		}
	}
	_, err = out.Write(overlay)
	return out, err
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

// Wait waits for the end of the guest and returns what [Run] returns. It may
// be called more than once.
func (v *VM) Wait() (Result, error) {
	<-v.done
	return v.result, v.err
}

// Kill ends the guest at once, as if its power was cut. [VM.Wait] then returns
// an error, unless the guest had powered off before.
func (v *VM) Kill() { v.cancel(errStopped) }

// Done is closed when the guest has ended and [VM.Wait] returns at once.
func (v *VM) Done() <-chan struct{} { return v.done }

// PID returns QEMU's process id.
func (v *VM) PID() int { return v.pid }

// Say tells the work one line, which its "hear" or "expect" takes. It waits
// until the guest has come up for the first time. What is said around a reboot
// may be lost: let the guest speak first.
func (v *VM) Say(ctx context.Context, line string) error { return v.report.say(ctx, line) }

// Hear waits for the next line of the work's "say" and returns it. It returns
// an error when the work has ended; if the guest failed, that error.
func (v *VM) Hear(ctx context.Context) (string, error) {
	line, err := v.report.hear(ctx)
	if errors.Is(err, errEnded) {
		select {
		case <-v.done:
			if v.err != nil {
				return "", v.err
			}
		case <-time.After(time.Second): // it is powering off
		}
	}
	return line, err
}

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

// Type types the text on the console; "\n" is the return key. Firmware takes
// commands there, and drops what is typed before it listens: wait for its
// prompt first.
func (v *VM) Type(text string) error {
	if _, err := io.WriteString(v.ports.console, strings.ReplaceAll(text, "\n", "\r")); err != nil {
		return fmt.Errorf("vm: type on the console: %w", err)
	}
	return nil
}

// sysRqPause is the time between a break and a key. Serial ports mix them up when one
// comes before the other was taken.
const sysRqPause = 500 * time.Millisecond

// SysRq presses magic SysRq keys on the console, one after the other: "w" has the kernel
// show there which tasks are blocked and where, "l" what the processors do.
func (v *VM) SysRq(ctx context.Context, keys string) error {
	for _, key := range keys {
		if _, err := v.QMP(ctx, "chardev-send-break", map[string]string{"id": "console"}); err != nil {
			return fmt.Errorf("vm: magic SysRq: %w", err)
		}
		time.Sleep(sysRqPause)
		if err := v.Type(string(key)); err != nil {
			return err
		}
		time.Sleep(sysRqPause)
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
