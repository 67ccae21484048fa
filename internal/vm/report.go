package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
)

// report is the conversation with the guest on its report port. Each line of
// the guest starts with what it is: "! " from its first process, which says
// that it is up and, later, how the work ended; "> " from the work itself.
type report struct {
	port *port

	mu      sync.Mutex
	heard   []string      // what the work said and nobody has taken yet
	changed chan struct{} // closed and replaced when there is more, or the end
	ended   bool
	ups     int // how often the guest came up
	exited  bool
	status  int
	err     error // a line that makes no sense

	onUp   func()
	onExit func()
}

// maxHeard bounds the lines the work may be ahead of the test.
const maxHeard = 1 << 16

var errEnded = errors.New("vm: the guest has ended")

// listen reads until the port closes.
func (r *report) listen() {
	lines := bufio.NewScanner(r.port)
	for lines.Scan() {
		r.take(lines.Text())
	}
	_, _ = io.Copy(io.Discard, r.port) // QEMU must not block on us
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	r.signal()
}

func (r *report) take(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.signal()
	if said, ok := strings.CutPrefix(line, "> "); ok && len(r.heard) < maxHeard {
		r.heard = append(r.heard, said)
		return
	}
	if line == "! up" {
		r.ups++
		r.onUp()
		return
	}
	if text, ok := strings.CutPrefix(line, "! exit "); ok {
		if status, err := strconv.Atoi(text); err == nil {
			r.exited, r.status = true, status
			r.onExit()
			return
		}
	}
	if r.err == nil {
		r.err = fmt.Errorf("vm: unexpected line on the report port: %q", line)
	}
}

func (r *report) signal() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// hear takes the next line the work said.
func (r *report) hear(ctx context.Context) (string, error) {
	for {
		r.mu.Lock()
		if len(r.heard) > 0 {
			line := r.heard[0]
			r.heard = r.heard[1:]
			r.mu.Unlock()
			return line, nil
		}
		over, changed := r.ended || r.exited, r.changed
		r.mu.Unlock()
		if over {
			return "", errEnded
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", fmt.Errorf("vm: wait for the guest to speak: %w", context.Cause(ctx))
		}
	}
}

// say tells the work one line. Until the guest's first process has set up the
// port, whatever is sent would be lost, so say waits for that.
func (r *report) say(ctx context.Context, line string) error {
	if strings.Contains(line, "\n") {
		return fmt.Errorf("vm: more than one line for the guest: %q", line)
	}
	for {
		r.mu.Lock()
		up, ended, changed := r.ups > 0, r.ended, r.changed
		r.mu.Unlock()
		if ended {
			return errEnded
		}
		if up {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("vm: wait for the guest to come up: %w", context.Cause(ctx))
		}
	}
	if _, err := io.WriteString(r.port, line+"\n"); err != nil {
		return fmt.Errorf("vm: speak to the guest: %w", err)
	}
	return nil
}

// upCount returns how often the guest came up.
func (r *report) upCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ups
}

// verdict says how the work ended, and whether it did.
func (r *report) verdict() (status int, exited bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status, r.exited, r.err
}
