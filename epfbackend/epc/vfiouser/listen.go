package vfiouser

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// What can be wrong with the path of a slot. Each error says in one sentence
// what, and the mend.
var (
	ErrPathLength = errors.New("socket path is too long")
	ErrTaken      = errors.New("socket is taken")
	ErrPath       = errors.New("socket cannot be there")
)

// maxPath is the longest path of a Unix socket, in bytes, the NUL not counted.
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// CheckPath says whether a slot could be at path now. It changes nothing.
func CheckPath(path string) error {
	_, err := inspect(path)
	return err
}

// inspect is CheckPath; stale says that there is a socket that nobody listens on.
func inspect(path string) (stale bool, err error) {
	if len(path) > maxPath {
		return false, fmt.Errorf("%s: %w: choose one of at most %d bytes", path, ErrPathLength, maxPath)
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		dir = filepath.Dir(dir) // listen makes the last one
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return false, fmt.Errorf("%s: %w: %s is not a directory; create it", path, ErrPath, dir)
	}
	if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
		return false, fmt.Errorf("%s: %w: %s is not writable for this user; choose another directory", path, ErrPath, dir)
	}
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("%s: %w: %w", path, ErrPath, err)
	case st.Mode().Type() != fs.ModeSocket:
		return false, fmt.Errorf("%s: %w: a file that is no socket is there; choose another path", path, ErrPath)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return true, nil
	case errors.Is(err, syscall.EACCES):
		return false, fmt.Errorf("%s: %w: a socket is there that is not writable for this user; choose another path", path, ErrPath)
	}
	return false, fmt.Errorf("%s: %w by a running server; stop it or choose another path", path, ErrTaken)
}

// listen makes a socket at path for this user only, and the directory it is in
// if that is missing. A socket that a dead server left behind is replaced.
func listen(path string) (*net.UnixListener, error) {
	stale, err := inspect(path)
	if err != nil {
		return nil, err
	}
	if stale {
		err = os.Remove(path)
	} else if err = os.Mkdir(filepath.Dir(path), 0o700); errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrPath, err)
	}
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		// The mode of an unbound socket becomes that of its file.
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	l, err := private.Listen(background, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrPath, err)
	}
	return l.(*net.UnixListener), nil
}
