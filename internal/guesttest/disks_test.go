package guesttest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
