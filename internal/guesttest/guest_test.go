package guesttest

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// guestTime is how long a guest may live. It is long because machines that test are
// slow and busy; a guest that is done ends at once.
const guestTime = 20 * time.Minute

// guest is a running guest that does as it is told.
type guest struct {
	*vm.Shell
	trouble bool // the test breaks something, so the kernel may complain
}

// boot starts a guest and waits until it is up. The guest is killed at the end
// of the test, if it is still there.
func boot(t *testing.T, cfg vm.Config) *guest {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = guestTime
	}
	var g *guest
	require.NoError(t, vm.UntilBorn(func() error {
		g = start(t, cfg)
		err := g.AwaitUp(t.Context())
		if err == nil {
			return nil
		}
		g.Kill()
		_, end := g.Wait()
		t.Logf("the guest did not come up: %v\n%s", end, tail(g.Console(), 3))
		return fmt.Errorf("%w: %w", err, end)
	}))
	return g
}

func start(t *testing.T, cfg vm.Config) *guest {
	t.Helper()
	// A machine that stands still because ours is busy is not what is looked for.
	cfg.Cmdline = strings.TrimSpace(cfg.Cmdline + " nosoftlockup rcupdate.rcu_cpu_stall_suppress=1")
	shell, err := vm.StartShell(t.Context(), cfg)
	require.NoError(t, err)
	g := &guest{Shell: shell}
	t.Cleanup(func() {
		g.Kill()
		<-g.Done()
		if t.Failed() {
			t.Logf("the guest's console:\n%s", tail(g.Console(), 40))
		}
	})
	return g
}

// up waits until the guest has come up again.
func (g *guest) up(t *testing.T) {
	t.Helper()
	require.NoError(t, g.AwaitUp(t.Context()))
}

// tell has the guest run a script, and does not wait.
func (g *guest) tell(t *testing.T, script string) {
	t.Helper()
	require.NoError(t, g.Tell(t.Context(), suite.Prelude+script))
}

// sh has the guest run a script, and returns what it printed. The test fails if
// the script does.
func (g *guest) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := g.Run(t.Context(), suite.Prelude+script)
	require.NoError(t, err)
	return strings.TrimSuffix(out, "\n")
}

// value has the guest run a command that prints one word.
func (g *guest) value(t *testing.T, command string) string {
	t.Helper()
	return strings.TrimSpace(g.sh(t, command))
}

// powerOff ends the guest and returns what it left behind. The test fails if it
// did not end well, or if its kernel had something to complain of.
func (g *guest) powerOff(t *testing.T) vm.Result {
	t.Helper()
	if !g.trouble {
		g.quiet(t)
	}
	res, err := g.End(t.Context())
	require.NoError(t, err)
	t.Logf("Linux %s, up in %v, off after %v", res.Kernel, res.Up.Round(time.Millisecond), res.Total.Round(time.Millisecond))
	return res
}

var (
	// serious matches a line of the kernel's log that is a warning or worse.
	serious = regexp.MustCompile(`(?m)^<(\d+)>(.*)$`)
	// concerning matches what has to do with the device, or with work that
	// waited for it in vain.
	concerning = regexp.MustCompile(`(?i:virtio|\bvd[a-z]|I/O error|ext4|pcie?\b|hung|blocked for more|nobody cared)|WARNING:|Call Trace|\bBUG:`)
)

// complaints returns what the kernel complained of that concerns the device, and
// not the bus that QEMU made for it.
func (g *guest) complaints(t *testing.T) []string {
	t.Helper()
	var lines []string
	for _, m := range serious.FindAllStringSubmatch(g.sh(t, "dmesg -r"), -1) {
		priority, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		if priority&7 <= 4 && concerning.MatchString(m[2]) && !strings.Contains(m[2], "pci-host-generic") {
			lines = append(lines, m[2])
		}
	}
	return lines
}

// quiet fails the test if the kernel complained.
func (g *guest) quiet(t *testing.T) {
	t.Helper()
	assert.Empty(t, g.complaints(t), "the guest's kernel complained")
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
