package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/internal/bench"
)

// benchOptions are the flags of bench.
type benchOptions struct {
	connect    string // the socket of a server that runs
	disk       string // as --disk has it; empty with --connect
	serve      []string
	trapFree   bool
	inProcess  bool
	serverCPUs cpuList
	rw         string
	ring       string
	json       bool

	setup bench.Setup
	job   bench.Job
}

// parse reads the command line, and completes it.
func (o *benchOptions) parse(args []string, out io.Writer) error {
	for i, a := range args {
		if a == "--" {
			args, o.serve = args[:i], args[i+1:]
			break
		}
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	mix, indirect := -1, true
	block, size, offset := sizeFlag(4096), sizeFlag(0), sizeFlag(0)
	runtime, ramp := timeFlag(10*time.Second), timeFlag(0)
	var cpus cpuList
	o.setup.Depth, o.setup.Queues, o.job.Seed = 32, 1, 1
	fs.Func("connect", "", o.setConnect)
	fs.StringVar(&o.disk, "disk", "", "")
	fs.StringVar(&o.rw, "rw", "randread", "")
	fs.IntVar(&mix, "rwmixread", mix, "")
	fs.Var(&block, "bs", "")
	fs.IntVar(&o.setup.Depth, "iodepth", o.setup.Depth, "")
	fs.IntVar(&o.setup.Batch, "iodepth-batch-complete-max", 0, "")
	fs.IntVar(&o.setup.Queues, "queues", o.setup.Queues, "")
	fs.Var(&offset, "offset", "")
	fs.Var(&size, "size", "")
	fs.Var(&runtime, "runtime", "")
	fs.Var(&ramp, "ramp-time", "")
	fs.Uint64Var(&o.job.Seed, "randseed", o.job.Seed, "")
	fs.BoolVar(&o.job.Verify, "verify", false, "")
	fs.StringVar(&o.ring, "ring", "split", "")
	fs.BoolVar(&o.setup.HiPri, "hipri", false, "")
	fs.BoolVar(&indirect, "indirect", indirect, "")
	fs.Var(&cpus, "cpus-allowed", "")
	fs.BoolVar(&o.trapFree, "trap-free", false, "")
	fs.Var(&o.serverCPUs, "server-cpus", "")
	fs.BoolVar(&o.inProcess, "in-process", false, "")
	fs.BoolVar(&o.json, "json", false, "")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(out, benchUsage)
			return err
		}
		return flagError("bench", err)
	}
	if fs.NArg() > 0 {
		return usageError("unexpected argument %q: options of serve come after --", fs.Arg(0))
	}
	o.setup.Direct = !indirect
	o.job.Block, o.job.Size, o.job.Offset = int(min(block, math.MaxInt32)), int64(size), int64(offset)
	o.job.Runtime, o.job.RampTime, o.job.CPUs = time.Duration(runtime), time.Duration(ramp), cpus
	return o.complete(mix, out)
}

// setConnect reads vfio-user:SOCKET.
func (o *benchOptions) setConnect(text string) error {
	rest, ok := strings.CutPrefix(text, vfioUserScheme)
	parts := splitCommas(rest)
	switch {
	case !ok || parts[0] == "":
		return usageError("--connect %s: write --connect vfio-user:SOCKET", text)
	case len(parts) > 1:
		return usageError("--connect %s: leave %s out: the server says how its registers are reached", text, strings.Join(parts[1:], ","))
	}
	o.connect = parts[0]
	return nil
}

// complete checks what depends on more than one flag.
func (o *benchOptions) complete(mix int, out io.Writer) error {
	switch {
	case o.connect == "" && o.disk == "":
		return usageError("nothing to load: add --disk PATH, or --connect vfio-user:SOCKET")
	case o.connect != "" && o.disk != "":
		return usageError("--connect and --disk are two ways to name what to load: choose one")
	case o.disk == "" && (o.trapFree || o.inProcess || o.serverCPUs != nil || o.serve != nil):
		return usageError("with --connect the server is there already: leave out --trap-free, --in-process, --server-cpus and what follows --")
	case o.inProcess && o.serverCPUs != nil:
		return usageError("--in-process leaves no server to put on --server-cpus: leave out one")
	case o.setup.Batch < 0:
		return usageError("--iodepth-batch-complete-max %d: choose a number above 0, or 0 for all there are", o.setup.Batch)
	case o.setup.Queues < 1 || o.setup.Queues > 1024:
		return usageError("--queues %d: choose 1 to 1024", o.setup.Queues)
	}
	workload, err := choose(o.rw, bench.Workloads)
	if err != nil {
		return usageError("--rw %s: %v", o.rw, err)
	}
	packed, err := choose(o.ring, map[string]bool{"split": false, "packed": true})
	if err != nil {
		return usageError("--ring %s: %v", o.ring, err)
	}
	o.setup.Packed, o.setup.Block, o.job.Depth = packed, o.job.Block, o.setup.Depth
	o.job.Random, o.job.ReadMix = workload.Random, workload.ReadMix
	if mix >= 0 {
		if workload.ReadMix == 0 || workload.ReadMix == 100 {
			return usageError("--rwmixread is for mixed workloads: choose --rw randrw or rw")
		}
		o.job.ReadMix = mix
	}
	if err := o.job.Check(); err != nil {
		return usageError("--%s", jobText(err))
	}
	return o.completeServe(out)
}

// jobText is what is wrong with a job (bench.ErrJob).
func jobText(err error) string {
	return strings.TrimPrefix(err.Error(), bench.ErrJob.Error()+": ")
}

// sizeFlag is a flag for a size in bytes.
type sizeFlag int64

func (s *sizeFlag) String() string { return "" }

func (s *sizeFlag) Set(text string) error {
	n, err := disk.ParseSize(text)
	*s = sizeFlag(n)
	return err
}

// timeFlag is a flag for a time; a bare number is in seconds, as fio has it.
type timeFlag time.Duration

func (t *timeFlag) String() string { return "" }

func (t *timeFlag) Set(text string) error {
	d, err := time.ParseDuration(text)
	if err != nil {
		if d, err = time.ParseDuration(text + "s"); err != nil {
			return fmt.Errorf("%q is not a time: write 10s, 500ms or 1m", text)
		}
	}
	*t = timeFlag(d)
	return nil
}

// cpuList is a flag for processors: 0,2-3.
type cpuList []int

func (c *cpuList) String() string { return "" }

func (c *cpuList) Set(text string) error {
	const most = 1024
	*c = nil
	for part := range strings.SplitSeq(text, ",") {
		low, high, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(low)
		last := first
		if err == nil && isRange {
			last, err = strconv.Atoi(high)
		}
		if err != nil || first < 0 || last < first || last >= most {
			return fmt.Errorf("%q is not a list of processors: write 0,2-3", text)
		}
		for n := first; n <= last; n++ {
			*c = append(*c, n)
		}
	}
	return nil
}
