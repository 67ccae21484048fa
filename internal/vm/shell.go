package vm

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// servant is the work of a guest that runs the scripts that it hears, and prints
// after each a line with its number and its status.
const servant = `
	say up
	n=0
	while line=$(hear); do
		[ "$line" != end ] || exit 0
		n=$((n + 1))
		echo "$line" | base64 -d >/tmp/script
		sh -e /tmp/script </dev/null 2>&1
		printf '\n==> %d %d\n' $n $?
	done
	exit 1
`

// Shell is a running guest that runs shell scripts, one after the other. Each ends
// with its first command that fails; what it leaves running goes on.
type Shell struct {
	*VM

	mu  sync.Mutex // held while Run runs a script
	out *printed
	n   int // scripts since the guest came up
}

// StartShell starts a guest as [Start] does. Its work is to run scripts, after the one of
// the configuration, if there is any; Live is not used. [Shell.AwaitUp] comes first.
func StartShell(ctx context.Context, cfg Config) (s *Shell, err error) {
	s = &Shell{out: newPrinted()}
	cfg.Script += servant
	cfg.Live = s.out
	if s.VM, err = Start(ctx, cfg); err != nil {
		return nil, err
	}
	return s, nil
}

// upTime is how long a guest may take to come up.
const upTime = 5 * time.Minute

// AwaitUp waits until the guest has come up, for the first time or again.
func (s *Shell) AwaitUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, upTime)
	defer cancel()
	if err := s.Expect(ctx, "up"); err != nil {
		return err
	}
	s.n = 0
	s.out.drop()
	return nil
}

// Reset resets the machine and waits until its guest is up again.
func (s *Shell) Reset(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.QMP(ctx, "system_reset", nil); err != nil {
		return err
	}
	return s.AwaitUp(ctx)
}

// Runs says whether there is a guest, and it has not ended.
func (s *Shell) Runs() bool {
	if s == nil {
		return false
	}
	select {
	case <-s.Done():
		return false
	default:
		return true
	}
}

// Run runs a script and returns what it printed. The error is a *[Failure] if it ran
// and failed.
func (s *Shell) Run(ctx context.Context, script string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.Tell(ctx, script); err != nil {
		return "", err
	}
	return s.Listen(ctx)
}

// Tell has the guest run a script, and does not wait for its end: the caller does, by
// [Shell.Listen], before there is another one.
func (s *Shell) Tell(ctx context.Context, script string) error {
	s.n++
	return s.Say(ctx, base64.StdEncoding.EncodeToString([]byte(script+"\n")))
}

// Listen waits for the end of the script that was told, and returns what [Shell.Run] does.
func (s *Shell) Listen(ctx context.Context) (string, error) {
	end := fmt.Sprintf("\n==> %d ", s.n)
	for {
		text, status, changed := s.out.take(end)
		if status != "" {
			return text, judge(text, status)
		}
		select {
		case <-changed:
		case <-s.Done():
			_, end := s.Wait()
			return "", fmt.Errorf("the guest has ended: %w", end)
		case <-ctx.Done():
			return "", fmt.Errorf("wait for the end of a script: %w\n%s", context.Cause(ctx), s.stuck())
		}
	}
}

// stuckTime is how long a guest has to say why a script does not end.
const stuckTime = 10 * time.Second

// stuck returns what a script that does not end has printed, and what the kernel says its
// tasks and processors do.
func (s *Shell) stuck() string {
	ctx, cancel := context.WithTimeout(context.Background(), stuckTime)
	defer cancel()
	before := len(s.Console())
	if err := s.SysRq(ctx, "wl"); err != nil {
		return fmt.Sprintf("it has printed: %s\n%v", s.out.peek(), err)
	}
	<-ctx.Done() // there is no mark of the end
	return fmt.Sprintf("it has printed: %s\nthe console shows:\n%s", s.out.peek(), s.Console()[before:])
}

// End ends the guest's work, and returns what [VM.Wait] does.
func (s *Shell) End(ctx context.Context) (Result, error) {
	if err := s.Say(ctx, "end"); err != nil {
		return Result{}, err
	}
	return s.Wait()
}

// Failure says that a script failed in a guest.
type Failure struct {
	Status int
	Output string // what it had printed
}

func (f *Failure) Error() string {
	return fmt.Sprintf("status %d of a script:\n%s", f.Status, f.Output)
}

// judge makes an error of what a guest printed as the status of a script.
func judge(text, status string) error {
	n, err := strconv.Atoi(strings.TrimSpace(status))
	if err != nil {
		return fmt.Errorf("a guest printed a status %q", status)
	}
	if n != 0 {
		return &Failure{Status: n, Output: text}
	}
	return nil
}

// printed is what a guest printed and nobody has taken yet.
type printed struct {
	mu      sync.Mutex
	text    []byte
	changed chan struct{} // closed and replaced when there is more
}

func newPrinted() *printed { return &printed{changed: make(chan struct{})} }

func (o *printed) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	close(o.changed)
	o.changed = make(chan struct{})
	return len(p), nil
}

// take takes what stands before the line that begins with end, and the rest of
// that line. While it is not there, status is empty.
func (o *printed) take(end string) (text, status string, changed <-chan struct{}) {
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

// peek returns all that is there.
func (o *printed) peek() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// drop takes all that is there.
func (o *printed) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = nil
}
