package machines

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// guestTime is how long a guest may live. It is long because machines that test are
// slow and busy.
const guestTime = 30 * time.Minute

// rig is a pair of guests of one test.
type rig struct {
	t *testing.T
	*Pair
}

// start starts a pair with the scripts that make the endpoint one of the kernel's
// own functions, and the kernel's own test.
func start(t *testing.T, rcKernel string, edit func(*Config)) *rig {
	t.Helper()
	ctx := t.Context()
	k, err := Build(ctx, rcKernel)
	require.NoError(t, err)
	root, err := Repository()
	require.NoError(t, err)
	scripts := filepath.Join(root, "kernel-patches/scripts")
	cfg := Config{
		Kernels: k,
		EP: vm.Config{Timeout: guestTime, Files: map[string]string{
			"epf-test": filepath.Join(scripts, "epf-test"), "epf-nvme": filepath.Join(scripts, "epf-nvme"),
			"epf-user": filepath.Join(scripts, "epf-user"), "epf_user_test": k.UserTest,
		}},
		RC:  vm.Config{Timeout: guestTime, Modules: []string{"nvme"}, Files: map[string]string{}},
		Log: slog.New(slog.NewTextHandler(&testLog{t}, nil)),
	}
	if k.TestDriver != "" {
		cfg.RC.Files["pci_endpoint_test.ko"], cfg.RC.Files["kselftest"] = k.TestDriver, k.TestProgram
	}
	if edit != nil {
		edit(&cfg)
	}
	begin := time.Now()
	p, err := Start(context.WithoutCancel(ctx), cfg) // it ends with Close, after the evidence
	require.NoError(t, err)
	r := &rig{t, p}
	t.Cleanup(func() {
		if t.Failed() {
			r.evidence()
		}
		require.NoError(t, p.Close())
	})
	t.Logf("both guests are up after %v", time.Since(begin).Round(time.Millisecond))
	return r
}

// testLog writes to the test's log.
type testLog struct{ t *testing.T }

func (l *testLog) Write(p []byte) (int, error) {
	l.t.Logf("link: %s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// remains says what the program did last, and what it does now if it has not ended: where
// its threads are, its io_urings, and its goroutines, which ends it.
const remains = `
	set +e
	dmesg | tail -n 40
	p=$(cat /tmp/vblk.pid 2>/dev/null) && [ -d /proc/$p ] && {
		grep . /proc/$p/task/*/wchan /proc/$p/task/*/stat /proc/$p/task/*/syscall
		cat /proc/interrupts
		grep -l SqMask /proc/$p/fdinfo/* | xargs cat
		kill -QUIT $p
		within 10 test ! -d /proc/$p
	} 2>&1
	cat /tmp/vblk.* 2>/dev/null
`

// evidence logs what helps to understand a failure. A guest whose last script has not come
// to an end has no answer.
func (r *rig) evidence() {
	for name, g := range map[string]*vm.Shell{"endpoint": r.EP(), "root complex": r.RC()} {
		if g == nil {
			continue
		}
		if !g.Runs() {
			_, err := g.Wait()
			r.t.Logf("%s has ended: %v\n", name, err)
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		out, err := g.Run(ctx, suite.Prelude+remains)
		cancel()
		r.t.Logf("%s: %v\n%s", name, err, out)
	}
	r.t.Logf("link: %+v", r.Lab.Stats())
}

// scriptTime bounds one script in a guest.
const scriptTime = 10 * time.Minute

func (r *rig) run(g *vm.Shell, script string) string {
	r.t.Helper()
	out, status := r.try(g, script)
	require.Zero(r.t, status, "%s\n%s", script, out)
	return out
}

// try runs a script that may fail.
func (r *rig) try(g *vm.Shell, script string) (out string, status int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), scriptTime)
	defer cancel()
	out, err := g.Run(ctx, suite.Prelude+script)
	var f *vm.Failure
	if errors.As(err, &f) {
		return f.Output, f.Status
	}
	require.NoError(r.t, err)
	return out, 0
}

// ep and rc run a script in a guest, which must succeed, and return what it
// printed.
func (r *rig) ep(script string) string { r.t.Helper(); return r.run(r.EP(), script) }
func (r *rig) rc(script string) string { r.t.Helper(); return r.run(r.RC(), script) }

// tryRC runs a script that may fail.
func (r *rig) tryRC(script string) (out string, status int) {
	r.t.Helper()
	return r.try(r.RC(), script)
}
