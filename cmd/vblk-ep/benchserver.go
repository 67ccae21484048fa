package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-multierror"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend"
)

// startTime bounds how long a server may take to announce itself, and stopTime
// how long to flush and end.
const (
	startTime = 30 * time.Second
	stopTime  = 60 * time.Second
)

// completeServe makes serve's arguments of what bench was asked for, and checks
// them, so that what is wrong is said before anything is started.
func (o *benchOptions) completeServe(out io.Writer) error {
	if o.disk == "" {
		return nil
	}
	spec, err := parseDisk(o.disk)
	if err != nil {
		return err
	}
	path := strings.ReplaceAll(spec.path, ",", ",,")
	disk := path + o.loadOptions() + o.disk[len(path):]
	if !o.job.Writes() {
		disk += ",readonly"
	}
	o.serve = append([]string{"--disk", disk}, o.serve...)
	var check options
	if err := check.parse("serve", serveUsage, o.serve, out); err != nil {
		return err
	}
	if check.slot.given {
		return usageError("the server is at a socket of its own: leave out --epc")
	}
	return nil
}

// loadOptions are what the load wants of the disk. What --disk says comes behind
// them, so it counts.
func (o *benchOptions) loadOptions() (text string) {
	if o.setup.Queues > 1 {
		text += fmt.Sprintf(",queues=%d", o.setup.Queues)
	}
	size := epfbackend.DefaultQueueSize
	for size < o.setup.Depth {
		size *= 2
	}
	if size > epfbackend.DefaultQueueSize {
		text += fmt.Sprintf(",queue-size=%d", size)
	}
	if o.setup.Packed && !o.trapFree {
		text += ",ring=packed"
	}
	return text
}

// benchServer is a server that bench has started for itself.
type benchServer struct {
	socket string
	dir    string
	end    func() error // stops it and waits for that
	log    bytes.Buffer // what it said of itself; complete after end
}

func (o *benchOptions) startServer(errOut io.Writer) (_ *benchServer, err error) {
	s := new(benchServer)
	if s.dir, err = os.MkdirTemp("", "vblk-ep-bench-"); err != nil {
		return nil, err
	}
	s.socket = filepath.Join(s.dir, "slot.sock")
	slot := vfioUserScheme + strings.ReplaceAll(s.socket, ",", ",,")
	if o.trapFree {
		slot += ",trap-free"
	}
	args := append([]string{"--epc", slot, "--json"}, o.serve...)
	if o.inProcess {
		err = s.serveHere(args, errOut)
	} else {
		err = s.spawn(args, o.serverCPUs)
	}
	if err != nil {
		_ = os.RemoveAll(s.dir)
		return nil, err
	}
	return s, nil
}

// serveHere serves from this process.
func (s *benchServer) serveHere(args []string, errOut io.Writer) error {
	var o options
	if err := o.parse("serve", serveUsage, args, io.Discard); err != nil {
		return err
	}
	log := o.logger(errOut)
	slots := newSlots(&o, log)
	exports, err := openAll(o.disks, slots, log)
	if err != nil {
		return joinErrors(err, slots.close(), closeAll(exports))
	}
	makeRoom(exports)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serveAll(ctx, exports, nil) }()
	s.end = func() error {
		cancel()
		return joinErrors(<-served, slots.close(), closeAll(exports))
	}
	return nil
}

// spawn serves from another process of this program.
func (s *benchServer) spawn(args []string, cpus cpuList) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(program, append([]string{"serve"}, args...)...)
	cmd.Stderr = &s.log
	// It ends with us, and not by what is typed at our terminal.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	gone := make(chan struct{})
	if err := startOn(cmd, cpus, gone); err != nil {
		return err
	}
	announced := make(chan error, 1)
	go func() {
		var a struct{ Exports []summary }
		announced <- json.NewDecoder(stdout).Decode(&a)
	}()
	var failed error
	select {
	case failed = <-announced:
	case <-time.After(startTime):
		failed = fmt.Errorf("it does not start within %v", startTime)
	}
	if failed != nil {
		_ = cmd.Process.Kill()
		err := cmd.Wait()
		close(gone)
		return s.complaints(fmt.Errorf("%w, %v", failed, err))
	}
	s.end = func() error {
		defer close(gone)
		_ = cmd.Process.Signal(unix.SIGTERM)
		kill := time.AfterFunc(stopTime, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			return s.complaints(err)
		}
		return nil
	}
	return nil
}

// startOn starts a command that may run on the given processors. A child has its
// parent's set, and dies with the parent's thread; so there is a thread for it
// until it is gone.
func startOn(cmd *exec.Cmd, cpus cpuList, gone <-chan struct{}) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never given back: its processors have changed
		if len(cpus) > 0 {
			var set unix.CPUSet
			for _, n := range cpus {
				set.Set(n)
			}
			if err := unix.SchedSetaffinity(0, &set); err != nil {
				started <- fmt.Errorf("--server-cpus: %w", err)
				return
			}
		}
		err := cmd.Start()
		started <- err
		if err == nil {
			<-gone
		}
	}()
	return <-started
}

// complaints is what the server said of its end, or else err.
func (s *benchServer) complaints(err error) error {
	var all *multierror.Error
	for line := range strings.Lines(s.log.String()) {
		if text, ours := strings.CutPrefix(strings.TrimSpace(line), "vblk-ep: "); ours {
			all = multierror.Append(all, fmt.Errorf("%s", text))
		}
	}
	if all.ErrorOrNil() != nil {
		return all
	}
	return fmt.Errorf("the server has ended: %w: %s", err, strings.TrimSpace(s.log.String()))
}

// stop ends the server, and shows what it logged.
func (s *benchServer) stop(errOut io.Writer) error {
	err := s.end()
	if err == nil {
		_, _ = s.log.WriteTo(errOut)
	}
	return joinErrors(err, os.RemoveAll(s.dir))
}
