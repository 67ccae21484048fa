// Command compare measures vblk-ep beside what one would use instead, and writes
// tables and plots. 'make bench' runs it; docs/performance.md says what its figures
// mean.
//
// All contenders take turns, again and again, so that noise hits all alike: what is
// compared was measured in the same round. Figures are medians over the rounds, and
// ratios are medians of the rounds' ratios.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// config is what the command line says.
type config struct {
	program string        // vblk-ep
	results string        // folder for what is written
	scratch string        // folder on the real disk
	rounds  int           // turns that each contender takes
	runtime time.Duration // of each turn, without the ramp
	size    int64         // of each disk in bytes
	quiet   quiet
	host    bool // compare without a guest
	guest   bool // compare inside a guest
}

// ramp is the load before each measurement.
const ramp = 500 * time.Millisecond

func main() {
	runtime.LockOSThread() // servers die with the thread that started them
	var c config
	flag.StringVar(&c.program, "vblk-ep", "bin/vblk-ep", "the program to measure")
	flag.StringVar(&c.results, "results", "results", "folder for tables and plots")
	flag.StringVar(&c.scratch, "scratch", "", "folder on the disk to measure (default: in -results)")
	flag.IntVar(&c.rounds, "rounds", 5, "turns that each contender takes")
	flag.DurationVar(&c.runtime, "runtime", 2*time.Second, "how long each turn is measured")
	flag.Int64Var(&c.size, "size", 1<<30, "size of each disk in bytes")
	flag.BoolVar(&c.host, "host", true, "compare without a guest")
	flag.BoolVar(&c.guest, "guest", true, "compare inside a guest")
	flag.Float64Var(&c.quiet.most, "others", 5, "repeat turns during which others used more of the machine, in percent")
	flag.DurationVar(&c.quiet.patience, "patience", 10*time.Minute, "for how long in all")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, c); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, c config) (err error) {
	if c.rounds < 1 || c.runtime < 100*time.Millisecond || c.size < 64<<20 {
		return errors.New("choose at least 1 round of 100ms on disks of 64 MiB")
	}
	if err := os.MkdirAll(c.results, 0o755); err != nil {
		return err
	}
	if c.scratch == "" {
		c.scratch = c.results
	}
	c.program, err = filepath.Abs(c.program)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(c.scratch, "scratch-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}

	rep := &report{Machine: machine(ctx, c)}
	l := &lab{config: c, dir: dir}
	defer func() { err = errors.Join(err, l.close()) }()
	if l.run, err = l.tmpfs(); err != nil {
		return err
	}
	if c.host {
		if err := l.compareHost(ctx, rep); err != nil {
			return err
		}
	}
	if c.guest {
		t, err := l.guestTable(ctx)
		if err != nil {
			return err
		}
		rep.Tables = append(rep.Tables, t)
	}
	return rep.write(c.results)
}
