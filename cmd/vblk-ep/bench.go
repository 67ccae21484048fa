package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/bench"
)

const benchUsage = `vblk-ep bench loads a virtio-blk function and says how fast it is. It is host and
driver itself, so it needs no guest.

Usage:
  vblk-ep bench --connect vfio-user:SOCKET [OPTION...]
  vblk-ep bench --disk PATH[,OPTION...] [OPTION...] [-- OPTION OF SERVE...]

The first form loads a server that runs, ours or another's. The second one starts
'vblk-ep serve' for the disk at a private socket, and stops it in the end; a
workload that only reads serves the disk read-only.

Examples:
  vblk-ep bench --disk null:1G --iodepth 128
  vblk-ep bench --disk /dev/nvme0n1p2 --rw read --bs 512k --iodepth 8
  vblk-ep bench --disk scratch.img --rw randwrite --verify
  vblk-ep bench --connect vfio-user:/tmp/vblk.sock --runtime 30s --json
  vblk-ep bench --disk null:1G --iodepth 128 --hipri -- --poll always

Load:
  --rw WORKLOAD             randread (default), randwrite, randrw, read, write or rw;
                            those that write destroy what is on the disk
  --rwmixread PERCENT       of randrw and rw: how much of it reads (default 50)
  --bs SIZE                 of a request (default 4K)
  --iodepth N               requests in flight on each queue (default 32)
  --iodepth-batch-complete-max N
                            completions that are reaped before requests are submitted
                            again (default: all there are)
  --queues N                queues, each driven by a thread of its own (default 1)
  --offset SIZE             where on the disk the load begins (default 0)
  --size SIZE               how much of the disk it uses (default: to the end)
  --runtime TIME            how long to measure: 10s (default), 500ms, 1m
  --ramp-time TIME          load before that (default 0s)
  --randseed N              of random positions and data (default 1)
  --verify                  check all data that is read, and in the end all that was
                            written; only with workloads that write

Driver:
  --ring split|packed       ring format (default split)
  --hipri                   poll for completions all the time, without interrupts
  --indirect=false          direct descriptors, three a request
  --cpus-allowed LIST       processors to run on, 0,2-3: one a queue, in turn

Server, with --disk:
  --trap-free               registers that are plain memory
  --server-cpus LIST        processors that it may run on
  --in-process              serve from this process
  Queues and ring format follow from the load, unless the disk's options say more.

Output:
  --json                    one object on standard output instead of text
`

// benchReport is what --json prints: the load, and what came of it.
type benchReport struct {
	Disk     string `json:"disk,omitempty"`
	Socket   string `json:"connect,omitempty"`
	RW       string `json:"rw"`
	ReadMix  int    `json:"rwmixread"`
	Block    int    `json:"bs"`
	Depth    int    `json:"iodepth"`
	Queues   int    `json:"queues"`
	Ring     string `json:"ring"`
	HiPri    bool   `json:"hipri"`
	Indirect bool   `json:"indirect"`
	TrapFree *bool  `json:"trap_free"` // null where the server is not ours to know
	*bench.Result
}

// runBench is the command.
func runBench(args []string, out, errOut io.Writer) (err error) {
	var o benchOptions
	if err := o.parse(args, out); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // a second signal ends us at once

	socket := o.connect
	if socket == "" {
		server, err := o.startServer(errOut)
		if err != nil {
			return err
		}
		defer func() { err = joinErrors(err, server.stop(errOut)) }()
		socket = server.socket
	}
	// Lanes that spin must not keep the runtime from running anything else.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + o.setup.Queues)
	result, err := o.measure(ctx, socket, errOut)
	if result != nil {
		if err := o.print(out, result); err != nil {
			return err
		}
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("interrupted")
	}
	if errors.Is(err, bench.ErrJob) {
		return errors.New(jobText(err))
	}
	return err
}

func (o *benchOptions) measure(ctx context.Context, socket string, errOut io.Writer) (r *bench.Result, err error) {
	target, err := bench.Connect(ctx, socket, o.setup)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	defer func() {
		if cerr := target.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("%s: %w", socket, cerr)
		}
	}()
	show := newProgress(errOut)
	defer show.end()
	return bench.Run(ctx, target, o.job, show.tell)
}

func (o *benchOptions) print(out io.Writer, r *bench.Result) error {
	b := benchReport{
		Disk: o.disk, Socket: o.connect, RW: o.rw, ReadMix: o.job.ReadMix,
		Block: o.job.Block, Depth: o.job.Depth, Queues: o.setup.Queues,
		Ring: o.ring, HiPri: o.setup.HiPri, Indirect: !o.setup.Direct, Result: r,
	}
	if o.disk != "" {
		b.TrapFree = &o.trapFree
	}
	if o.json {
		return json.NewEncoder(out).Encode(b)
	}
	completions, queues, where := "interrupts", "1 queue", o.disk
	if b.HiPri {
		completions = "polled completions"
	}
	if b.Queues > 1 {
		queues = fmt.Sprintf("%d queues", b.Queues)
	}
	if where == "" {
		where = o.connect
	} else if o.trapFree {
		where += ", trap-free"
	}
	fmt.Fprintf(out, "%s: %s of %s, depth %d, %s, %s ring, %s\n", where, b.RW, formatSize(int64(b.Block)), b.Depth, queues, b.Ring, completions)
	r.Print(out)
	return nil
}

// progress tells how far a run is: on a terminal each second, elsewhere now and
// then, so that long runs show that they are alive.
type progress struct {
	w        io.Writer
	terminal bool
	shown    bool
	last     time.Duration
}

// quietTime is how long nothing is told where there is no terminal.
const quietTime = 10 * time.Second

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		p.terminal = err == nil
	}
	return p
}

func (p *progress) tell(s bench.Progress) {
	what := "load"
	if s.Verifying {
		what = "verify"
	}
	line := fmt.Sprintf("%s: %.0f s, %s IOPS, %s", what, s.Elapsed.Seconds(), bench.Rate(s.IOPS), bench.Bandwidth(s.Bytes))
	switch {
	case p.terminal:
		fmt.Fprintf(p.w, "\r\x1b[K%s", line)
		p.shown = true
	case s.Elapsed-p.last >= quietTime:
		fmt.Fprintln(p.w, line)
		p.last = s.Elapsed
	}
}

// end clears the line.
func (p *progress) end() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}
