// Command demo shows the main job from end to end: it lets vblk-ep serve a disk
// image, boots a guest with a stock kernel on it, and then looks at the image to
// find what the guest wrote.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

//go:embed guest.sh
var guestScript string

const (
	imageSize = 256 << 20
	stopTime  = 20 * time.Second // for the server to flush and exit
)

func main() {
	program := flag.String("vblk-ep", "bin/vblk-ep", "the program to show")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, *program); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func step(format string, args ...any) { fmt.Printf("\n==> "+format+"\n", args...) }

func run(ctx context.Context, program string) error {
	step("QEMU and a stock Debian kernel (fetched once, then cached)")
	if err := vm.Fetch(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "vblk-ep-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image, socket := filepath.Join(dir, "disk.img"), filepath.Join(dir, "slot.sock")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(image, imageSize); err != nil {
		return err
	}

	step("vblk-ep serve --disk %s,serial=DEMO --epc vfio-user:%s", image, socket)
	server, err := startServer(ctx, program, image, socket)
	if err != nil {
		return err
	}
	defer func() { _ = server.Process.Kill() }()

	if err := runGuest(ctx, socket); err != nil {
		return err
	}

	step("stopping vblk-ep")
	if err := stopServer(server); err != nil {
		return err
	}
	return inspect(ctx, image)
}

func startServer(ctx context.Context, program, image, socket string) (*exec.Cmd, error) {
	server := exec.CommandContext(ctx, program, "serve", "--disk", image+",serial=DEMO", "--epc", "vfio-user:"+socket)
	server.Stdout, server.Stderr = os.Stdout, os.Stderr
	if err := server.Start(); err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(socket); err == nil {
			return server, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if err := server.Process.Signal(unix.Signal(0)); err != nil {
			return nil, fmt.Errorf("vblk-ep did not start: %w", err)
		}
	}
}

func runGuest(ctx context.Context, socket string) error {
	step("a guest with Debian's own kernel: virtio_pci and virtio_blk, unmodified")
	result, err := vm.Run(ctx, vm.Config{Devices: []string{vm.VFIOUser(socket)}, Script: guestScript})
	for line := range strings.Lines(result.Output) {
		fmt.Print("    ", line)
	}
	if err != nil {
		return fmt.Errorf("the guest: %w", err)
	}
	fmt.Printf("    (Linux %s, up in %.1f s, off after %.1f s)\n", result.Kernel, result.Up.Seconds(), result.Total.Seconds())
	return nil
}

func stopServer(server *exec.Cmd) error {
	if err := server.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	timer := time.AfterFunc(stopTime, func() { _ = server.Process.Kill() })
	defer timer.Stop()
	if err := server.Wait(); err != nil {
		return fmt.Errorf("vblk-ep: %w", err)
	}
	return nil
}

// inspect looks at the image without the guest and without vblk-ep.
func inspect(ctx context.Context, image string) error {
	step("what the guest wrote, read from the image: debugfs -R 'cat /hello' %s", filepath.Base(image))
	out, err := exec.CommandContext(ctx, "debugfs", "-R", "cat /hello", image).Output()
	if err != nil {
		return fmt.Errorf("debugfs: %w", err)
	}
	fmt.Printf("    %s", out)
	if !bytes.HasPrefix(out, []byte("written by Linux ")) {
		return errors.New("the guest's file is not in the image")
	}
	var st unix.Stat_t
	if err := unix.Stat(image, &st); err != nil {
		return err
	}
	fmt.Printf("    the image holds %d MiB of its %d: what the guest discarded is a hole\n",
		st.Blocks*512>>20, imageSize>>20)
	if st.Blocks*512 > imageSize/2 {
		return errors.New("discarded blocks still take up space in the image")
	}
	fmt.Println("\nall done: the guest's data is on the disk")
	return nil
}
