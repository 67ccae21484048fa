package suite

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Shell runs a shell script that begins with [Prelude] and ends with the first
// failure, and returns what it printed. The test fails if the script does.
type Shell func(t *testing.T, script string) string

// Disk is a disk of a host, and what stands behind it.
type Disk struct {
	// Host is the host, and Name what it calls the disk, as vda. Where names may
	// change, Serial finds it instead.
	Host         Shell
	Name, Serial string
	// Outside is where the server runs, or can see what it serves, and Back the path
	// there of the disk that is served.
	Outside Shell
	Back    string
	// File is the file on this machine in which all of it ends up, from At on.
	File string
	At   int64
}

// Prelude is what scripts may use.
const Prelude = `
	# The shell prefers commands of its own to these, which can do more.
	dd() { /usr/bin/dd "$@"; }
	fallocate() { /usr/bin/fallocate "$@"; }
	blkdiscard() { /usr/sbin/blkdiscard "$@"; }
	blockdev() { /usr/sbin/blockdev "$@"; }
	fstrim() { /usr/sbin/fstrim "$@"; }
	# virtio DISK: its virtio device, as virtio0
	virtio() { basename "$(readlink -f /sys/block/$1/device)"; }
	# pci DISK: the folder of its PCI function
	pci() { dirname "$(readlink -f /sys/block/$1/device)"; }
	# serial NUMBER: the disk that has it
	serial() {
		for s in /sys/block/vd*/serial; do
			[ "$(cat $s)" != "$1" ] || basename "$(dirname $s)"
		done
	}
	# fill DISK MIBS AT: writes so many MiB of 0xaa from that MiB on
	fill() {
		tr '\0' '\252' </dev/zero |
			dd of=/dev/$1 bs=1M count=$2 seek=$3 iflag=fullblock oflag=direct status=none
	}
	# within SECONDS COMMAND...: repeats the command until it succeeds
	within() {
		local end=$(($(date +%s) + $1))
		shift
		until "$@"; do
			[ $(date +%s) -lt $end ] || { echo "gave up on: $*"; return 1; }
			sleep 0.1
		done
	}
`

// sh runs a script on the host, where $d is the disk's name.
func (d Disk) sh(t *testing.T, script string) string {
	t.Helper()
	name := d.Name
	if name == "" {
		name = "$(serial " + d.Serial + ")"
	}
	return strings.TrimSpace(d.Host(t, "d="+name+"\n"+script))
}

// behind runs a script where the server is, where $back is the disk that is served.
func (d Disk) behind(t *testing.T, script string) string {
	t.Helper()
	return strings.TrimSpace(d.Outside(t, fmt.Sprintf("back='%s'\n", d.Back)+script))
}

// Here is the [Shell] of this machine.
func Here(t *testing.T, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-e", "-c", Prelude+script)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	require.NoError(t, err, "%s\n%s%s", script, out, &errors)
	return string(out)
}

// Image returns the disk that is a file of this machine, or a block device.
func Image(host Shell, name, path string) Disk {
	return Disk{Host: host, Name: name, Outside: Here, Back: filepath.Clean(path), File: path}
}

// Digest returns the SHA-256 of what is behind the server.
func (d Disk) Digest(t *testing.T) string {
	t.Helper()
	return strings.Fields(d.behind(t, `sha256sum <"$back"`))[0]
}

// Agrees fails the test unless the host reads what is behind the server, all of it.
func (d Disk) Agrees(t *testing.T) {
	t.Helper()
	seen := strings.Fields(d.sh(t, "dd if=/dev/$d bs=1M iflag=direct status=none | sha256sum"))[0]
	require.Equal(t, d.Digest(t), seen, "the disk, and what the host sees of it")
}
