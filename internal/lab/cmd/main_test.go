package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/lab/machines"
)

// patience bounds how long a line of the documents is repeated: a user looks again, too.
const patience = 3 * time.Minute

// answers are what the lines that the guide tells a reader to type must show.
var answers = map[string]string{
	"ep vblk-ep check --disk /dev/vda2":   `doorbell`,
	"ep vblk-ep serve --disk /dev/vda2 &": `^$`,
	"rc lsblk":                            `vda +\d+:0 +0 +128M +0 disk`,
	"rc mkfs.ext4 -q /dev/vda; mount /dev/vda /mnt; echo seen from both sides >/mnt/file; umount /mnt": `^$`,
	"ep killall vblk-ep":                           ``,
	"ep mount -o ro /dev/vda2 /mnt; cat /mnt/file": `seen from both sides`,
}

// TestVMDocumented types what the guide and the lab's page say, as it stands there.
func TestVMDocumented(t *testing.T) {
	typed := lines(t, "../../../docs/guide.md", "vblk-ep serve")
	require.Len(t, typed, len(answers))
	for _, line := range lines(t, "../../../docs/lab.md", "vblk-ep serve") {
		require.Contains(t, typed, line, "what the lab's page says is part of it")
	}
	from, keyboard := io.Pipe()
	screen := &screen{changed: make(chan struct{}, 1)}
	ended := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Minute)
	defer cancel()
	go func() { ended <- run(ctx, "newest", machines.Config{}, from, screen) }()
	say := func(line string) string {
		_, err := fmt.Fprintln(keyboard, line)
		require.NoError(t, err)
		return screen.prompt(t, ended)
	}
	screen.prompt(t, ended) // the first
	for _, line := range typed {
		want := answers[line]
		require.Contains(t, answers, line)
		end := time.Now().Add(patience)
		for {
			got := say(line)
			if regexp.MustCompile(want).MatchString(strings.TrimSpace(got)) {
				break
			}
			require.True(t, time.Now().Before(end), "lab> %s\n%s", line, got)
			time.Sleep(time.Second)
		}
	}
	// A guest that has ended is there to be started, and for nothing else.
	say("rc poweroff -f")
	require.Equal(t, errNotRunning.Error()+"\n", say("rc true"))
	require.Equal(t, errNotRunning.Error()+"\n", say("reset"))
	require.Empty(t, say("start rc"))
	require.Empty(t, say("rc true"))
	_, err := fmt.Fprintln(keyboard, "quit")
	require.NoError(t, err)
	require.NoError(t, <-ended)
}

func TestNothingToReset(t *testing.T) {
	require.ErrorIs(t, execute(t.Context(), new(machines.Pair), "reset", "", io.Discard), errNotRunning)
}

// lines returns what is typed at the prompt in those examples of a document in which a
// word appears.
func lines(t *testing.T, document, word string) (typed []string) {
	t.Helper()
	text, err := os.ReadFile(document)
	require.NoError(t, err)
	var example []string
	for line := range strings.Lines(string(text) + "\n") {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "lab> "); ok {
			example = append(example, command)
			continue
		}
		if strings.Contains(strings.Join(example, "\n"), word) {
			typed = append(typed, example...)
		}
		example = nil
	}
	require.NotEmpty(t, typed, document)
	return typed
}

// screen is what the program prints.
type screen struct {
	mu      sync.Mutex
	text    []byte
	changed chan struct{}
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p...)
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

// prompt waits for the next prompt and returns what stands before it.
func (s *screen) prompt(t *testing.T, ended <-chan error) string {
	t.Helper()
	for {
		s.mu.Lock()
		before, rest, found := bytes.Cut(s.text, []byte("lab> "))
		if found {
			s.text = bytes.Clone(rest)
		}
		s.mu.Unlock()
		if found {
			return string(before)
		}
		select {
		case <-s.changed:
		case err := <-ended:
			require.Fail(t, "the program has ended", "%v", err)
		}
	}
}
