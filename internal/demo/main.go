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
	startTime = 20 * time.Second // for the server to listen
	stopTime  = 20 * time.Second // for it to flush and exit
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
	defer server.kill()

	if err := runGuest(ctx, socket); err != nil {
		return err
	}

	step("stopping vblk-ep")
	if err := server.stop(); err != nil {
		return err
	}
	return inspect(ctx, image)
}

// server is a running vblk-ep.
type server struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of its end; valid when ended is closed
}

// startServer returns when the slot is there.
func startServer(ctx context.Context, program, image, socket string) (*server, error) {
	s := &server{
		cmd: exec.CommandContext(ctx, program, "serve",
			"--disk", image+",serial=DEMO", "--epc", "vfio-user:"+socket),
		ended: make(chan struct{}),
	}
	s.cmd.Stdout, s.cmd.Stderr = os.Stdout, os.Stderr
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.err = s.cmd.Wait()
		close(s.ended)
	}()
	late := time.After(startTime)
	for {
		if _, err := os.Stat(socket); err == nil {
			return s, nil
		}
		select {
		case <-s.ended:
			return nil, fmt.Errorf("vblk-ep did not start: %w", s.err)
		case <-late:
			s.kill()
			return nil, fmt.Errorf("vblk-ep did not start within %v", startTime)
		case <-time.After(20 * time.Millisecond):
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

// stop has the server flush and exit.
func (s *server) stop() error {
	if err := s.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return err
	}
	select {
	case <-s.ended:
	case <-time.After(stopTime):
		s.kill()
		return fmt.Errorf("vblk-ep did not stop within %v", stopTime)
	}
	if s.err != nil {
		return fmt.Errorf("vblk-ep: %w", s.err)
	}
	return nil
}

// kill ends the server at once, if it still runs.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
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
