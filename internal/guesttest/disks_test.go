package guesttest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// image makes a file of the size without content, in a folder of the test.
func image(t *testing.T, name string, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, size))
	return file
}

// run runs a program of this machine and returns what it printed.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	require.NoError(t, err, "%s %s: %s%s", program, strings.Join(args, " "), out, &errors)
	return strings.TrimSpace(string(out))
}

// flushes returns how many flushes a block device has completed: field 16 of
// /sys/block/NAME/stat.
func flushes(t *testing.T, device string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "stat"))
	require.NoError(t, err)
	f := strings.Fields(string(text))
	require.GreaterOrEqual(t, len(f), 16, "%s", text)
	n, err := strconv.Atoi(f[15])
	require.NoError(t, err)
	return n
}

// patch overwrites part of a file.
func patch(t *testing.T, file string, offset int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(data, offset)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// content reads part of a disk.
func content(t *testing.T, disk string, offset, length int64) []byte {
	t.Helper()
	f, err := os.Open(disk)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	data := make([]byte, length)
	_, err = f.ReadAt(data, offset)
	require.NoError(t, err)
	return data
}

// all says whether part of a disk consists of one byte.
func all(t *testing.T, disk string, offset, length int64, b byte) bool {
	t.Helper()
	data := content(t, disk, offset, length)
	return bytes.Count(data, []byte{b}) == len(data)
}

// digest returns the SHA-256 of a disk.
func digest(t *testing.T, disk string) string {
	t.Helper()
	f, err := os.Open(disk)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	h := sha256.New()
	_, err = io.Copy(h, f)
	require.NoError(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

// hole says whether a range of a file takes no space.
func hole(t *testing.T, file string, offset, length int64) bool {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	data, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return true // no data from here on
	}
	require.NoError(t, err)
	return data >= offset+length
}

// allocated returns how many bytes of storage a file takes.
func allocated(t *testing.T, file string) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(file, &st))
	return st.Blocks * 512
}
