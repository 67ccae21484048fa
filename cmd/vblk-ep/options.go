package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
)

// options are the flags that serve and check share.
type options struct {
	disks     diskFlag
	slot      slotFlag
	engine    string
	poll      string
	subsystem string
	pin       bool
	force     bool
	json      bool
	verbose   bool
}

const optionsUsage = `
Options:
  --disk PATH[,OPTION...]   a block device, a partition, a file, or null:SIZE;
                            again for each further disk, each a function of its own
  --epc [CONTROLLER][,dma=auto|off][,doorbell=auto|its|shared|poll][,keep]
                            be a function of this machine's PCI endpoint controller, which
                            is the default if there is one; its name is needed if there
                            are several. dma=off: the processor copies; doorbell: the
                            kind that is used (auto: the best there is); keep: the
                            function stays with the host, for the next server to go on
  --epc vfio-user:[SOCKET][,trap-free[,doorbell=16]]
                            offer a virtual slot at SOCKET (further disks: slot-1.sock,
                            slot-2.sock, ... if that is slot.sock);
                            default: /run/vblk-ep/NAME.sock, NAME being the disk's;
                            trap-free makes the registers plain memory, as on an
                            endpoint controller that sees no register accesses;
                            doorbell=16 for one whose doorbell takes only 16 bits
  --io auto|io_uring|plain  how disk I/O is done (auto: io_uring where the kernel lets us)
  --poll auto|off|always|TIME
                            how long a queue without work is looked at before its thread
                            sleeps, as in 50us (auto: while that pays; always: for hosts
                            that never notify)
  --pin-memory              hold the host's memory, all of it, so that its pages are not
                            looked up for each request: for hosts whose memory is there
                            in full, such as guests of huge pages without a balloon
  --subsystem VVVV:DDDD     subsystem vendor and device id, in hexadecimal
  --force                   export the disk although it is mounted or in use
  --json                    print what is exported as JSON
  --verbose                 log what happens, not only what goes wrong

Options of a disk:
  readonly                  refuse all writes
  serial=S                  serial number, up to 20 characters
  queues=N                  virtqueues, each served by a thread of its own (default 1)
  cpus=LIST                 processors to bind these threads to, one each, in turn, as in
                            2-3 or 0,,2 (default: none)
  queue-size=N              entries of each, a power of two (default 256)
  cache=writeback|writethrough
                            writethrough makes each write durable before it completes,
                            until the driver turns the cache on (default writeback)
  ring=split|packed|both    ring formats that the driver may use (default split;
                            trap-free: both)
  direct=auto|on|off        bypass this machine's page cache (auto: where the disk can)
  block-size=native|SIZE    logical block size to present, 512 to 4K (default native:
                            a block device's own, 512 for a file); one that is smaller
                            than a block device's own is emulated
A comma that belongs to a path is written twice.
`

// parse reads the command line of a command whose own help starts with head.
func (o *options) parse(name, head string, args []string, out io.Writer) error {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Var(&o.disks, "disk", "")
	fs.Var(&o.slot, "epc", "")
	fs.StringVar(&o.engine, "io", "auto", "")
	fs.StringVar(&o.poll, "poll", "auto", "")
	fs.StringVar(&o.subsystem, "subsystem", "", "")
	fs.BoolVar(&o.pin, "pin-memory", false, "")
	fs.BoolVar(&o.force, "force", false, "")
	fs.BoolVar(&o.json, "json", false, "")
	fs.BoolVar(&o.verbose, "verbose", false, "")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(out, head, optionsUsage)
			return err
		}
		return flagError(name, err)
	}
	switch {
	case fs.NArg() > 0:
		return usageError("unexpected argument %q: disks are named with --disk", fs.Arg(0))
	case len(o.disks) == 0:
		return usageError("no disk is named: add --disk PATH")
	}
	return o.complete()
}

// flagError turns what package flag says into one sentence with the mend.
func flagError(command string, err error) error {
	text := err.Error()
	// What an option's own parser said is complete; package flag puts a prefix
	// before it.
	if _, own, ok := strings.Cut(text, errUsage.Error()+": "); ok {
		return usageError("%s", own)
	}
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: "); ok {
		return usageError("unknown option -%s: see 'vblk-ep %s --help'", name, command)
	}
	return usageError("%s: see 'vblk-ep %s --help'", text, command)
}

// complete passes what was given for all disks on to each.
func (o *options) complete() error {
	o.slot.resolve()
	engine, ok := disk.ParseEngineKind(o.engine)
	if !ok {
		return usageError("--io %s: choose auto, io_uring or plain", o.engine)
	}
	poll, err := epfbackend.ParsePoll(o.poll)
	if err != nil {
		return usageError("--poll %s: choose auto, off, always or a time above 0 as in 50us", o.poll)
	}
	var vendor, device uint16
	if o.subsystem != "" {
		v, d, _ := strings.Cut(o.subsystem, ":")
		var err1, err2 error
		vendor, err1 = parseID(v)
		device, err2 = parseID(d)
		if err1 != nil || err2 != nil {
			return usageError("--subsystem %s: write two hexadecimal numbers above 0 as in 1af4:1042", o.subsystem)
		}
	}
	for i := range o.disks {
		d := &o.disks[i]
		d.open.Force = o.force
		d.offer.Engine, d.offer.Poll, d.offer.PinMemory = engine, poll, o.pin
		d.offer.TrapFree = o.slot.slot.trapFree || o.slot.real != nil
		d.offer.Doorbell16 = o.slot.slot.narrow
		d.offer.SubsystemVendor, d.offer.SubsystemDevice = vendor, device
		if err := d.offer.Check(); err != nil { // what depends on the slot
			return usageError("--disk %s: %v", d.path, err)
		}
	}
	return nil
}

func parseID(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 16, 16)
	if err == nil && n == 0 {
		err = strconv.ErrRange
	}
	return uint16(n), err
}

func (o *options) logger(w io.Writer) *slog.Logger {
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}
