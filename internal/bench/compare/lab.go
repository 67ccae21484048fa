package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// lab makes the disks, and keeps what contenders need: servers, loop devices.
type lab struct {
	config
	dir  string // on the real disk
	run  string // for sockets, whose paths must be short
	undo []func() error
}

// close undoes all that was set up, the last first.
func (l *lab) close() error {
	var errs []error
	for _, f := range slices.Backward(l.undo) {
		errs = append(errs, f())
	}
	l.undo = nil
	return errors.Join(errs...)
}

// file makes a disk image full of random data, so that no disk has it easier for
// blocks that were never written.
func (l *lab) file(dir, name string) (path string, err error) {
	path = filepath.Join(dir, name)
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	l.undo = append(l.undo, func() error { return os.Remove(path) })
	_, err = io.CopyN(f, rand.Reader, l.size)
	return path, errors.Join(err, f.Sync(), f.Close())
}

// tmpfs makes a folder in memory.
func (l *lab) tmpfs() (dir string, err error) {
	dir, err = os.MkdirTemp("/dev/shm", "vblk-ep-bench-")
	if err == nil {
		l.undo = append(l.undo, func() error { return os.RemoveAll(dir) })
	}
	return dir, err
}

// loop makes a loop device of a file, with direct I/O below.
func (l *lab) loop(ctx context.Context, path string) (device string, err error) {
	out, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", path)
	device = strings.TrimSpace(string(out))
	if err == nil {
		l.undo = append(l.undo, func() error {
			_, err := output(context.Background(), "losetup", "--detach", device)
			return err
		})
	}
	return device, err
}

// startTime is how long a server may take until it listens.
const startTime = 3 * time.Minute

// serve starts a server and waits until it listens at the socket.
func (l *lab) serve(ctx context.Context, socket string, command ...string) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stderr = os.Stderr
	// It dies with the thread that started it, which is the main one: see main.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // once it listens it is told to end: how is its own affair
		close(ended)
	}()
	l.undo = append(l.undo, func() error {
		_ = cmd.Process.Signal(unix.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		<-ended
		return nil
	})
	for late := time.After(startTime); ; {
		if _, err := os.Stat(socket); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
			return fmt.Errorf("%s: %v; it does not listen at %s", command[0], cmd.ProcessState, socket)
		case <-late:
			return fmt.Errorf("%s does not listen at %s", command[0], socket)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// daemon starts qemu-storage-daemon with a file and one export of it.
func (l *lab) daemon(ctx context.Context, path, socket string, export ...string) error {
	command, err := vm.StorageDaemon(ctx)
	if err != nil {
		return err
	}
	command = append(command, "--blockdev",
		"driver=file,node-name=disk,filename="+path+",aio=io_uring,cache.direct=on,cache.no-flush=off")
	return l.serve(ctx, socket, append(command, export...)...)
}

// daemonNBD serves a file through NBD as fast as the storage daemon can.
func (l *lab) daemonNBD(ctx context.Context, path string) (socket string, err error) {
	socket = filepath.Join(l.run, filepath.Base(path)+".nbd")
	return socket, l.daemon(ctx, path, socket, "--nbd-server", "addr.type=unix,addr.path="+socket,
		"--export", "type=nbd,id=export,node-name=disk,name=,writable=on")
}

// nbdkit serves something through NBD.
func (l *lab) nbdkit(ctx context.Context, plugin ...string) (socket string, err error) {
	socket = filepath.Join(l.run, "nbdkit-"+plugin[0])
	return socket, l.serve(ctx, socket, append([]string{"nbdkit", "--foreground", "--unix", socket}, plugin...)...)
}
