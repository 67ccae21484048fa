package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cacheEnv names the environment variable that overrides the cache's place.
const cacheEnv = "VBLK_EP_CACHE"

// CacheDir returns the folder that holds QEMU, the kernels and the guest's
// programs: $VBLK_EP_CACHE, or vblk-ep in the user's cache folder. It may not
// exist yet. Deleting it is always safe while no test runs.
func CacheDir() (string, error) {
	if dir := os.Getenv(cacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("vm: find the cache folder (set %s): %w", cacheEnv, err)
	}
	return filepath.Join(dir, "vblk-ep"), nil
}

// recipe is one thing the cache can hold: a folder whose name carries a hash of
// everything that decides its content, so that a changed recipe is a new entry
// and an entry that exists is complete.
type recipe struct {
	name string   // for people: what it is
	key  []string // all inputs; the entry's name carries their hash
	make func(ctx context.Context, b *builder, dir string) error
}

func (r recipe) entry() string {
	sum := sha256.Sum256([]byte(strings.Join(append([]string{r.name}, r.key...), "\x00")))
	return r.name + "-" + hex.EncodeToString(sum[:6])
}

// ensure returns the folder of the entry, building it if it is not there. The
// build happens in a temporary folder that is renamed when whole, under a lock
// that all processes share.
func ensure(ctx context.Context, r recipe) (string, error) {
	root, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, r.entry())
	if found, err := exists(dir); found || err != nil {
		return dir, err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", fmt.Errorf("vm: make the cache folder: %w", err)
	}
	unlock, err := lockCache(ctx, root)
	if err != nil {
		return "", err
	}
	defer unlock()
	if found, err := exists(dir); found || err != nil { // built while we waited
		return dir, err
	}

	work, err := os.MkdirTemp(root, "build-*")
	if err != nil {
		return "", fmt.Errorf("vm: make a build folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	begin := time.Now()
	progress("%s: building", r.name)
	out := filepath.Join(work, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		return "", err
	}
	if err := r.make(ctx, &builder{work: work}, out); err != nil {
		return "", fmt.Errorf("vm: build %s: %w", r.name, err)
	}
	if err := os.Rename(out, dir); err != nil {
		return "", fmt.Errorf("vm: keep %s: %w", r.name, err)
	}
	progress("%s: ready in %.1f s", r.name, time.Since(begin).Seconds())
	return dir, nil
}

// builder is what a recipe's make function works with.
type builder struct {
	work string // scratch folder, removed after the build
}

// lockCache waits until this process alone may build.
func lockCache(ctx context.Context, root string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("vm: open the cache's lock: %w", err)
	}
	for told := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing releases the lock
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("vm: lock the cache: %w", err)
		}
		if !told {
			progress("waiting for another process that fills %s", root)
			told = true
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("vm: wait for the cache's lock: %w", context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// progress tells whoever waits what is being fetched or built. Only work that
// takes seconds speaks.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "vm: "+format+"\n", args...)
}
