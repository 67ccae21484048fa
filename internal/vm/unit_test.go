package vm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCPIOGolden(t *testing.T) {
	var a cpioArchive
	a.file("a/b", 0o755, []byte("hello"))
	a.symlink("l", "a/b")
	a.file("/a/b", 0o600, []byte("the first of a name wins"))
	const (
		zeros = "00000000"
		one   = "00000001"
		head  = "070701"
	)
	entry := func(ino, mode, size, nameSize, name, data string) string {
		// ino, mode, uid, gid, links, mtime, size, four device numbers, name size, checksum
		return head + ino + mode + zeros + zeros + one + zeros + size +
			zeros + zeros + zeros + zeros + nameSize + zeros + name + data
	}
	want := entry(one, "000041ed", zeros, "00000002", "a\x00", "") +
		entry("00000002", "000081ed", "00000005", "00000004", "a/b\x00\x00\x00", "hello\x00\x00\x00") +
		entry("00000003", "0000a1ff", "00000003", "00000002", "l\x00", "a/b\x00") +
		entry(zeros, zeros, zeros, "0000000b", "TRAILER!!!\x00\x00\x00\x00", "")
	assert.Equal(t, want, string(a.bytes()))
	assert.True(t, a.has("/a"))
	assert.False(t, a.has("b"))
}

func TestModulesDepOrder(t *testing.T) {
	modules := map[string]module{
		"blk":    {path: "kernel/blk.ko", deps: []string{"ring", "virtio", "builtin"}},
		"virtio": {path: "kernel/virtio.ko", deps: []string{"ring"}},
		"ring":   {path: "kernel/ring.ko"},
	}
	assert.Equal(t, "kernel/blk.ko: kernel/virtio.ko kernel/ring.ko\n"+
		"kernel/ring.ko:\n"+
		"kernel/virtio.ko: kernel/ring.ko\n", modulesDep(modules))
}

func TestParseTargets(t *testing.T) {
	assert.Equal(t, mirrors{main: "http://one/debian/", security: "http://one/security/"}, parseTargets(
		"Other|Debian|http://else/\n"+
			"$(ORIGIN)|$(LABEL)|http://unread/\n"+
			"Debian|Debian-Security|http://one/security/\n"+
			"Debian|Debian|http://one/debian/\n"+
			"Debian|Debian|http://two/debian/\n"))
	assert.Zero(t, parseTargets(""))
}

func TestKernelPackagePattern(t *testing.T) {
	for name, want := range map[string]bool{
		"linux-image-6.1.0-50-cloud-amd64":           true,
		"linux-binary-7.2.12+deb13-cloud-amd64":      true,
		"linux-modules-7.2.12+deb13-cloud-amd64":     true,
		"linux-base-7.2.12+deb13-cloud-amd64":        false,
		"linux-image-cloud-amd64":                    false,
		"initramfs-tools":                            false,
		"not-linux-image-7.2.12+deb13-cloud-amd64":   false,
		"linux-headers-7.2.12+deb13-common":          false,
		"linux-image-7.2.12+deb13-cloud-amd64-extra": true,
	} {
		assert.Equal(t, want, kernelPackage.MatchString(name), name)
	}
}

func TestCheckTests(t *testing.T) {
	const passed = "=== RUN   TestA\n--- PASS: TestA (0.00s)\n"
	for name, test := range map[string]struct{ output, complaint string }{
		"passed":        {passed + "PASS\n", ""},
		"failed":        {passed + "--- FAIL: TestB (0.00s)\nFAIL\n", "failed"},
		"failed within": {passed + "    --- FAIL: TestB/x (0.00s)\nPASS\n", "failed"},
		"panicked":      {passed + "panic: oh\n\ngoroutine 1 [running]:\n", "failed"},
		"cut short":     {passed, "did not finish"},
		"empty":         {"", "did not finish"},
		"none matched":  {"testing: warning: no tests to run\nPASS\n", "no test ran"},
		"all skipped":   {"--- SKIP: TestA (0.00s)\nPASS\n", "no test ran"},
	} {
		err := checkTests(test.output)
		if test.complaint == "" {
			assert.NoError(t, err, name)
		} else {
			assert.ErrorContains(t, err, test.complaint, name)
		}
	}
}

func TestCrashPattern(t *testing.T) {
	for line, want := range map[string]bool{
		"[    3.1] Kernel panic - not syncing: sysrq":                true,
		"[    3.1] BUG: kernel NULL pointer dereference":             true,
		"[    3.1] Oops: 0002 [#1] PREEMPT SMP":                      true,
		"[    3.1] Oops: general protection fault, probably for":     true,
		"[    3.1] general protection fault, probably for":           true,
		"[    3.1] Unable to handle kernel paging request":           true,
		"[    3.1] Internal error: Oops: 96000004":                   true,
		"[    3.1] watchdog: BUG: soft lockup - CPU#0 stuck":         false,
		"[    3.1] virtio_blk virtio0: [vda] 131072 512-byte":        false,
		"[    3.1] Kernel command line: oops=panic":                  false,
		"[    3.1] RAS: Correctable Errors collector initialized.":   false,
		"[    3.1] I/O error, dev vda, sector 0 op 0x0:(READ)":       false,
		"[    3.1] INFO: task sh:1 blocked for more than 120 sec":    false,
		"[    3.1] print: BUG: inside of a line is not the kernel's": false,
	} {
		assert.Equal(t, want, crash.MatchString("first\n"+line+"\r\nlast"), line)
	}
}

func TestBootSector(t *testing.T) {
	sector, err := BootSector("hello")
	require.NoError(t, err)
	assert.Len(t, sector, 512)
	assert.Equal(t, []byte{0x55, 0xaa}, sector[510:])
	// The operand of "mov si" is where the text is, relative to 0x7c00.
	at := int(sector[6]) | int(sector[7])<<8
	assert.Equal(t, "hello\x00", string(sector[at-0x7c00:at-0x7c00+6]))
	_, err = BootSector(strings.Repeat("x", 401))
	assert.Error(t, err)
}

func TestVFIOUserDevice(t *testing.T) {
	assert.JSONEq(t,
		`{"driver":"vfio-user-pci","socket":{"type":"unix","path":"/tmp/a \"b\""},"bootindex":0}`,
		VFIOUser(`/tmp/a "b"`, BootIndex(0)))
}

func TestConfigChecks(t *testing.T) {
	for name, c := range map[string]Config{
		"no work":           {},
		"two works":         {Script: "true", Test: "x"},
		"boot without text": {BootDisk: true},
		"no such firmware":  {Script: "true", Firmware: "coreboot"},
		"another machine's": {Script: "true", Firmware: UBoot},
		"nothing to boot":   {Kernel: ARM64(), BootDisk: true, Until: "x"},
	} {
		_, err := Run(t.Context(), c)
		assert.Error(t, err, name)
	}
}

func TestCaptureIsBounded(t *testing.T) {
	c := newCapture()
	chunk := make([]byte, 1<<20)
	for range 2 * maxCapture / len(chunk) {
		n, err := c.Write(chunk)
		require.NoError(t, err)
		require.Equal(t, len(chunk), n)
	}
	assert.Len(t, c.text, maxCapture)
	c.end()
	assert.ErrorContains(t, c.waitFor(t.Context(), "x"), "ended without")
}

func TestCacheBuildsOnce(t *testing.T) {
	root := t.TempDir()
	t.Setenv(cacheEnv, root)
	var builds atomic.Int32
	r := recipe{name: "thing", key: []string{"1"}, make: func(_ context.Context, _ *builder, dir string) error {
		builds.Add(1)
		return os.WriteFile(filepath.Join(dir, "content"), []byte("x"), 0o600)
	}}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			dir, err := ensure(t.Context(), r)
			assert.NoError(t, err)
			assert.FileExists(t, filepath.Join(dir, "content"))
		})
	}
	all.Wait()
	assert.EqualValues(t, 1, builds.Load())

	changed := r
	changed.key = []string{"2"}
	_, err := ensure(t.Context(), changed)
	require.NoError(t, err)
	assert.EqualValues(t, 2, builds.Load(), "a changed recipe is another entry")
}

func TestCacheKeepsNothingOfAFailedBuild(t *testing.T) {
	root := t.TempDir()
	t.Setenv(cacheEnv, root)
	broken := errors.New("broken")
	_, err := ensure(t.Context(), recipe{name: "thing", make: func(_ context.Context, _ *builder, dir string) error {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "half"), nil, 0o600))
		return broken
	}})
	require.ErrorIs(t, err, broken)
	var left []string
	require.NoError(t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if p != root && d.Name() != "lock" {
			left = append(left, p)
		}
		return err
	}))
	assert.Empty(t, left)
}

func TestCacheLockObeysContext(t *testing.T) {
	root := t.TempDir()
	t.Setenv(cacheEnv, root)
	unlock, err := lockCache(t.Context(), root)
	require.NoError(t, err)
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = ensure(ctx, recipe{name: "thing"})
	assert.ErrorIs(t, err, context.Canceled)
}

// A guest whose first process hangs before it says that it is up is stillborn, too.
func TestStillbornInItsFirstProcess(t *testing.T) {
	defer func(was time.Duration) { birthTime = was }(birthTime)
	birthTime = time.Millisecond
	ctx, cancel := context.WithCancelCause(t.Context())
	v := &VM{console: newCapture(), report: &report{}, qmp: newQMP(nil), cancel: cancel}
	_, err := v.console.Write([]byte("Run /init as init process\n"))
	require.NoError(t, err)
	v.watchBirth(ctx)
	require.ErrorIs(t, context.Cause(ctx), ErrStillborn)
}
