package machines

import (
	"encoding/json"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/lab"
)

// For figures that are to be written down: -args -rounds 3 -runtime 10s.
var (
	rounds  = flag.Int("rounds", 1, "turns of either side in TestVMSideBySide")
	runtime = flag.Duration("runtime", 2*time.Second, "of each of its jobs")
	only    = flag.String("works", "", "which of its jobs: those whose name contains this")
)

// side is one of two functions of one device, which export the same disk.
type side struct{ name, disk string }

var (
	target = side{"NVMe", "/dev/nvme0n1"}
	ours   = side{"ours", "/dev/vda"}
)

// work is one fio job that both do.
type work struct {
	name, job string
	more      float64 // DMA transfers a request that ours may need more than the target
	reads     float64 // that its processor may make, and wait for
}

// A command of the target is one transfer, a request of ours an indirect table, a header
// and a status byte, and now and then a block of the ring. What long ones read goes to one
// piece of the host's memory, or it would be luck who has how many to fill; the pages of
// our own memory may each be a transfer.
var works = []work{
	{"4K random, depth 1", "--rw=randread --bs=4k --iodepth=1", 1.5, 25},
	{"4K random, depth 32", "--rw=randread --bs=4k --iodepth=32", 2.5, 5},
	{"4K random, 4 x 32", "--rw=randread --bs=4k --iodepth=32 --numjobs=4 --group_reporting", 2.5, 5},
	{"512K sequential read, depth 4", "--rw=read --bs=512k --iodepth=4 --mem=mmaphuge", 128, 40},
	{"512K sequential write, depth 4", "--rw=write --bs=512k --iodepth=4 --mem=mmaphuge", 128, 40},
}

// direction is what fio reports of what a job read, or wrote.
type direction struct {
	Bytes   float64 `json:"io_bytes"`
	Runtime float64 `json:"runtime"` // ms
	Total   float64 `json:"total_ios"`
}

// chosen returns the jobs that are wanted.
func chosen() (list []work) {
	for _, w := range works {
		if strings.Contains(w.name, *only) {
			list = append(list, w)
		}
	}
	return list
}

// figures of fio jobs.
type figures struct {
	requests, seconds, bytes float64
	cpu                      time.Duration // of the endpoint
	rung                     int           // doorbells that interrupted it
	switches                 int           // of its processors
	link                     lab.Stats
}

func (f *figures) add(g figures) {
	f.requests += g.requests
	f.seconds += g.seconds
	f.bytes += g.bytes
	f.cpu += g.cpu
	f.rung += g.rung
	f.switches += g.switches
	f.link = combine(f.link, g.link, func(a, b uint64) uint64 { return a + b })
}

// combine combines counters one by one.
func combine(a, b lab.Stats, f func(a, b uint64) uint64) lab.Stats {
	return lab.Stats{
		InboundReads: f(a.InboundReads, b.InboundReads), InboundWrites: f(a.InboundWrites, b.InboundWrites),
		Posted:        f(a.Posted, b.Posted),
		OutboundReads: f(a.OutboundReads, b.OutboundReads), OutboundWrites: f(a.OutboundWrites, b.OutboundWrites),
		RegisterReads: f(a.RegisterReads, b.RegisterReads), RegisterWrites: f(a.RegisterWrites, b.RegisterWrites),
		DMATransfers: f(a.DMATransfers, b.DMATransfers), DMABytes: f(a.DMABytes, b.DMABytes),
		DMAInterrupts: f(a.DMAInterrupts, b.DMAInterrupts), Interrupts: f(a.Interrupts, b.Interrupts),
		Doorbells: f(a.Doorbells, b.Doorbells),
	}
}

// per returns a counter for each request.
func (f *figures) per(n uint64) float64 { return float64(n) / f.requests }

// measure has the root complex do a job on a side's disk.
func (r *rig) measure(s side, w work) figures {
	r.t.Helper()
	rung, busy, switches, before := sum(r.doorbells()), r.worked(), r.switches(), r.Lab.Stats()
	out := r.rc(fmt.Sprintf("fio --name=m --filename=%s --ioengine=io_uring --direct=1 --randrepeat=0 --time_based "+
		"--runtime=%d --output-format=json %s", s.disk, int(runtime.Seconds()), w.job))
	after := r.Lab.Stats()
	f := figures{cpu: r.worked() - busy, switches: r.switches() - switches, rung: sum(r.doorbells()) - rung}
	var report struct {
		Jobs []struct {
			Error int       `json:"error"`
			Read  direction `json:"read"`
			Write direction `json:"write"`
		} `json:"jobs"`
	}
	require.NoError(r.t, json.Unmarshal([]byte(out), &report), out)
	require.Len(r.t, report.Jobs, 1)
	done := report.Jobs[0].Read
	if done.Total == 0 {
		done = report.Jobs[0].Write
	}
	require.Zero(r.t, report.Jobs[0].Error)
	require.NotZero(r.t, done.Total)
	f.requests, f.bytes, f.seconds = done.Total, done.Bytes, done.Runtime/1000
	f.link = combine(after, before, func(a, b uint64) uint64 { return a - b })
	return f
}

func sum(numbers []int) (n int) {
	for _, m := range numbers {
		n += m
	}
	return n
}

// worked is how long the endpoint's processors have worked, all interrupts included.
func (r *rig) worked() time.Duration {
	r.t.Helper()
	fields := strings.Fields(r.ep("head -n 1 /proc/stat"))
	require.Greater(r.t, len(fields), 7)
	ticks := 0
	for i, field := range fields[1:8] {
		if n, err := strconv.Atoi(field); i != 3 && i != 4 { // idle, and waiting for the disk
			require.NoError(r.t, err)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// switches is how often the endpoint's processors have changed tasks.
func (r *rig) switches() int {
	r.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(r.ep("sed -n 's/^ctxt //p' /proc/stat")))
	require.NoError(r.t, err)
	return n
}

// both starts a link with two functions, which both export the endpoint's disk. On a busy
// machine the endpoint may be away for longer than the driver takes to set up its queues,
// and says so; then the root complex starts anew, and in the end with one queue, which
// cannot be missed.
func (r *rig) both(disk, ring string) {
	r.t.Helper()
	for _, queues := range []int{2, 2, 2, 1} {
		r.link(disk, ring, queues)
		if r.found() {
			r.t.Logf("queues: %d", queues)
			r.rc("echo 8 >/proc/sys/vm/nr_hugepages")
			return
		}
		r.KillRC()
		r.ep(`
			kill -TERM $(cat /tmp/vblk.pid)
			within 180 test ! -d /proc/$(cat /tmp/vblk.pid)
			LINK=off sh epf-nvme stop
		`)
		require.NoError(r.t, r.StartRC())
	}
	require.Fail(r.t, "one queue was missed")
}

// found waits for the target's disk, which comes after ours, or for our function to say
// that it was too late.
func (r *rig) found() bool {
	r.t.Helper()
	for range 180 {
		if _, status := r.tryRC("within 1 test -b " + target.disk); status == 0 {
			return true
		}
		if late := r.ep("grep 'were not captured' /tmp/vblk.err || true"); late != "" {
			r.t.Log(late)
			return false
		}
	}
	require.Fail(r.t, "the disks are not found")
	return false
}

// link starts the link. Our function is the first one, as only that has doorbells at the
// ITS, and the target needs none.
func (r *rig) link(disk, ring string, queues int) {
	r.t.Helper()
	r.ep(fmt.Sprintf("export QUEUES=%d\n", queues) + `
		ep=/sys/kernel/config/pci_ep
		[ -d $ep ] || mount -t configfs configfs /sys/kernel/config
		controller=$(echo $ep/controllers/*)
		mkdir $ep/functions/pci_epf_test/first
		ln -s $ep/functions/pci_epf_test/first $controller/first
		LINK=off sh epf-nvme start ` + disk + `
		rm $controller/first
		rmdir $ep/functions/pci_epf_test/first
	`)
	r.serveOn(fmt.Sprintf("--force --disk %s,queues=%d,ring=%s", disk, queues, ring))
}

// turn gives a turn to a side. The target looks for commands as long as its driver is
// there, so that is taken away while it is not its turn; ours sleeps. A flush shows ours
// that its driver knows of the cache: before one, each write is made durable.
func (r *rig) turn(s side) {
	r.t.Helper()
	if s == ours {
		r.rc(`
			[ -e /dev/nvme0n1 ] || exit 0
			basename /sys/bus/pci/drivers/nvme/0* >/tmp/nvme
			cat /tmp/nvme >/sys/bus/pci/drivers/nvme/unbind
		`)
	} else {
		r.rc("[ -e /dev/nvme0n1 ] || cat /tmp/nvme >/sys/bus/pci/drivers/nvme/bind; within 180 test -b " + s.disk)
	}
	r.rc("dd if=/dev/zero of=" + s.disk + " bs=4k count=1 oflag=direct conv=fsync status=none")
}

// TestVMSideBySide has the kernel's NVMe target and ours export one disk from one
// endpoint to one stock kernel, in turns, and tells what each reaches and what a request
// costs. Times say nothing about silicon, ratios of one run say a little; the messages a
// request are what a link sees.
func TestVMSideBySide(t *testing.T) {
	works := chosen()
	r := start(t, "newest", func(c *Config) { require.NoError(t, c.AddProgram(t.Context(), t.TempDir())) })
	for _, with := range []struct{ disk, ring string }{{"/dev/nullb0", "packed"}, {"/dev/vda", "split"}, {"/dev/loop0", "split"}} {
		disk := with.disk
		if disk == "/dev/loop0" {
			r.ep("losetup /dev/loop0 /dev/vda")
		}
		r.both(disk, with.ring)
		all := map[side][]figures{target: make([]figures, len(works)), ours: make([]figures, len(works))}
		for range *rounds {
			for _, s := range []side{target, ours} {
				r.turn(s)
				for i, w := range works {
					all[s][i].add(r.measure(s, w))
				}
			}
		}
		t.Logf("%s, ours with a %s ring\n%s", disk, with.ring, table(works, all))
		for i, w := range works {
			n, o := all[target][i], all[ours][i]
			require.Zero(t, o.link.InboundReads, "%s: registers are memory", w.name)
			require.Equal(t, o.link.Posted, o.link.InboundWrites, "%s: only doorbells are messages", w.name)
			require.LessOrEqual(t, o.per(o.link.InboundWrites), 1.1, w.name)
			require.LessOrEqual(t, o.per(o.link.Interrupts), n.per(n.link.Interrupts)+0.1, w.name)
			require.LessOrEqual(t, o.per(o.link.DMATransfers), n.per(n.link.DMATransfers)+w.more, w.name)
			require.LessOrEqual(t, o.per(o.link.OutboundReads), w.reads, w.name)
		}
		if disk != "/dev/nullb0" {
			r.exchange(disk)
		}
		// The first function last: all DMA is issued by it.
		r.rc("for device in $(ls -d /sys/bus/pci/devices/*:0[1-9]:00.? | sort -r); do echo 1 >$device/remove; done")
		r.stopServing()
		r.ep("LINK=off sh epf-nvme stop")
	}
}

// exchange writes by either side what the other, and the endpoint, must read.
func (r *rig) exchange(disk string) {
	r.t.Helper()
	r.turn(target) // both are needed, and nothing is measured
	for _, pair := range [][2]side{{ours, target}, {target, ours}} {
		out := strings.Fields(r.rc(fmt.Sprintf(`
			dd if=/dev/urandom of=/tmp/data bs=1M count=8 status=none
			dd if=/tmp/data of=%s bs=256K oflag=direct conv=fsync status=none
			dd if=%s bs=64K count=128 iflag=direct status=none | cmp - /tmp/data
			sha256sum </tmp/data
		`, pair[0].disk, pair[1].disk)))
		seen := strings.Fields(r.ep("dd if=" + disk + " bs=1M count=8 iflag=direct status=none | sha256sum"))
		require.Equal(r.t, out[0], seen[0], "written by %s", pair[0].name)
	}
}

// table prints figures, those of the two sides below each other.
func table(works []work, all map[side][]figures) string {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 1, ' ', 0)
	fmt.Fprintln(tw, "| job\t| by\t| requests/s\t| MB/s\t| DMA transfers\t| DMA interrupts\t| interrupts to the RC\t| doorbells\t"+
		"| trapped reads, writes of the RC\t| outbound reads, writes\t| register reads, writes\t| task switches\t| EP processor, ms\t|")
	for i, w := range works {
		for _, s := range []side{target, ours} {
			f := all[s][i]
			l := &f.link
			fmt.Fprintf(tw, "| %s\t| %s\t| %.0f\t| %.1f\t| %.2f\t| %.2f\t| %.2f\t| %.2f\t| %.2f, %.2f\t| %.2f, %.2f\t| %.2f, %.2f\t| %.1f\t| %.2f\t|\n",
				w.name, s.name, f.requests/f.seconds, f.bytes/f.seconds/1e6, f.per(l.DMATransfers), f.per(l.DMAInterrupts),
				f.per(l.Interrupts), float64(f.rung)/f.requests, f.per(l.InboundReads), f.per(l.InboundWrites),
				f.per(l.OutboundReads), f.per(l.OutboundWrites), f.per(l.RegisterReads), f.per(l.RegisterWrites),
				float64(f.switches)/f.requests, float64(f.cpu.Microseconds())/1000/f.requests)
		}
		n, o := all[target][i], all[ours][i]
		fmt.Fprintf(tw, "| \t| ours / NVMe\t| %.2f\t|\t|\t|\t|\t|\t|\t|\t|\t|\t| %.2f\t|\n", (o.requests/o.seconds)/(n.requests/n.seconds),
			(float64(o.cpu)/o.requests)/(float64(n.cpu)/n.requests))
	}
	_ = tw.Flush()
	return b.String()
}
