package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/lab/machines"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// forever is how long a guest lives at most.
const forever = 30 * 24 * time.Hour

func main() {
	trap := flag.Uint("trap", 0, "a bit for each BAR that is trapped, so that its ranges can move while the link is up")
	doorbell16 := flag.Bool("doorbell16", false, "the controller's doorbell takes writes of 16 bits, too")
	forgetful := flag.Bool("forgetful", false, "a reset of the root complex takes away what the endpoint programmed")
	kernel := flag.String("rc", "newest", "the root complex's stock kernel: newest, debian12 or arm64")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, *kernel, machines.Config{TrapBARs: uint8(*trap), Doorbell16: *doorbell16, Forgetful: *forgetful}, os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// run starts both guests and executes the lines that are typed.
func run(ctx context.Context, rcKernel string, cfg machines.Config, typed io.Reader, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "lab-disk-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	kernels, err := machines.Build(ctx, rcKernel)
	if err != nil {
		return err
	}
	root, err := machines.Repository()
	if err != nil {
		return err
	}
	scripts := filepath.Join(root, "kernel-patches/scripts")
	ep, err := newConsole()
	if err != nil {
		return err
	}
	defer ep.close()
	rc, err := newConsole()
	if err != nil {
		return err
	}
	defer rc.close()
	fmt.Fprintf(out, "Consoles (for example with screen): endpoint %s, root complex %s\n", ep.name, rc.name)
	cfg.Kernels = kernels
	cfg.EP = vm.Config{Timeout: forever, LiveConsole: ep, Files: map[string]string{
		"epf-test": filepath.Join(scripts, "epf-test"), "epf-nvme": filepath.Join(scripts, "epf-nvme"),
	}}
	cfg.RC = vm.Config{Timeout: forever, LiveConsole: rc, Reboot: true, Modules: []string{"nvme"}, Files: make(map[string]string)}
	if kernels.TestDriver != "" {
		cfg.RC.Files["pci_endpoint_test.ko"], cfg.RC.Files["kselftest"] = kernels.TestDriver, kernels.TestProgram
	}
	if err := cfg.AddProgram(ctx, dir); err != nil {
		return err
	}
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	p, err := machines.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	if err := p.Partition(ctx); err != nil {
		return err
	}
	go ep.typeTo(func() *vm.Shell { return p.EP() })
	go rc.typeTo(func() *vm.Shell { return p.RC() })
	return prompt(ctx, p, typed, out)
}

const help = `ep COMMAND, rc COMMAND   run a shell command in a guest; scripts are in /work:
                         "ep vblk-ep serve --disk /dev/vda2 &", then "rc lsblk";
                         "ep sh epf-nvme start /dev/nullb0", "ep sh epf-test start"
drop, restore            take the link down, let it come back
stall, go                make DMA stand still, go on
fail N                   make N DMA transfers fail
reset                    reset the root complex
kill ep|rc, start ep|rc  cut a guest's power, start it again
stats                    what went over the link
quit`

// prompt executes lines until the end or "quit".
func prompt(ctx context.Context, p *machines.Pair, from io.Reader, out io.Writer) error {
	fmt.Fprintln(out, help)
	lines := make(chan string)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(from); in.Scan(); {
			lines <- in.Text()
		}
	}()
	for {
		fmt.Fprint(out, "lab> ")
		select {
		case <-ctx.Done():
			return nil
		case line, ok := <-lines:
			verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			if !ok || verb == "quit" {
				return nil
			}
			if err := execute(ctx, p, verb, strings.TrimSpace(rest), out); err != nil {
				fmt.Fprintln(out, err)
			}
		}
	}
}

var (
	errUsage      = errors.New(help)
	errNotRunning = errors.New("it is not running")
)

func execute(ctx context.Context, p *machines.Pair, verb, rest string, out io.Writer) error {
	switch verb {
	case "":
	case "ep":
		return inGuest(ctx, p.EP(), rest, out)
	case "rc":
		return inGuest(ctx, p.RC(), rest, out)
	case "drop", "restore":
		p.Lab.DropLink(verb == "drop")
	case "stall", "go":
		p.Lab.StallDMA(verb == "stall")
	case "fail":
		n, err := strconv.Atoi(rest)
		if err != nil {
			return errUsage
		}
		p.Lab.FailDMA(n)
	case "reset":
		if !p.RC().Runs() {
			return errNotRunning
		}
		return p.ResetRC(ctx)
	case "stats":
		fmt.Fprintf(out, "%+v\n", p.Lab.Stats())
	default:
		return power(p, verb+" "+rest)
	}
	return nil
}

func power(p *machines.Pair, what string) error {
	switch {
	case what == "kill ep" && p.EP() != nil:
		p.KillEP()
	case what == "kill rc" && p.RC() != nil:
		p.KillRC()
	case what == "start ep" && !p.EP().Runs():
		return p.StartEP()
	case what == "start rc" && !p.RC().Runs():
		return p.StartRC()
	default:
		return errUsage
	}
	return nil
}

func inGuest(ctx context.Context, g *vm.Shell, script string, to io.Writer) error {
	if !g.Runs() {
		return errNotRunning
	}
	out, err := g.Run(ctx, script)
	fmt.Fprint(to, out)
	var failed *vm.Failure
	if errors.As(err, &failed) {
		return fmt.Errorf("status %d", failed.Status)
	}
	return err
}
