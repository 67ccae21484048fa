package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"time"

	"github.com/hashicorp/go-multierror"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
)

const serveUsage = `vblk-ep serve exports disks until it is stopped.

Usage:
  vblk-ep serve --disk PATH[,OPTION...] [OPTION...]

Examples:
  vblk-ep serve --disk /dev/nvme0n1p2
  vblk-ep serve --disk /dev/nvme0n1p2 --epc a40000000.pcie-ep,dma=off
  vblk-ep serve --disk /dev/mmcblk0p3,readonly
  vblk-ep serve --disk disk.img,serial=SCRATCH,queues=4 --epc vfio-user:/tmp/vblk.sock
  vblk-ep serve --disk a.img --disk b.img,cache=writethrough

A disk that changes its size is noticed within a second, and at once on SIGHUP.
SIGTERM and SIGINT finish what is in flight, flush and exit; a second one exits
at once, without.
`

// resizePeriod is how often a disk's size is looked at.
const resizePeriod = time.Second

// slot is a place for one function.
type slot interface {
	Serve(ctx context.Context, fn epc.Function) error
	Path() string
}

// export is one disk on its way to one host.
type export struct {
	spec  diskSpec
	store disk.Store
	fn    *epfbackend.Function
	slot  slot
	log   *slog.Logger
}

func serve(args []string, out, errOut io.Writer) (err error) {
	var o options
	if err := o.parse("serve", serveUsage, args, out); err != nil {
		return err
	}
	log := o.logger(errOut)
	ctx, stop := stopOnSignal(log)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, unix.SIGHUP) // to the end: it must not kill who is flushing

	slots := newSlots(&o, log)
	exports, err := openAll(o.disks, slots, log)
	defer func() { err = joinErrors(err, slots.close(), closeAll(exports)) }()
	if err != nil {
		return err
	}
	if err := announce(out, exports, o.json); err != nil {
		return err
	}
	makeRoom(exports)
	tellSupervisor(stateReady, log)
	return serveAll(ctx, exports, hangup)
}

// makeRoom lets the threads of queues, which may not sleep for long, run beside
// everything else: messages of the host must not wait for one of them to be
// interrupted by the scheduler.
func makeRoom(exports []*export) {
	n := runtime.GOMAXPROCS(0)
	for _, e := range exports {
		if o := e.fn.Options(); o.Poll != epfbackend.PollOff {
			n += o.Queues
		}
	}
	runtime.GOMAXPROCS(n)
}

// openAll makes everything ready, and reports all that is in the way at once. Slots are
// made once all disks are there: who cannot serve changes nothing that a host sees.
// What it returns must be closed, also after an error.
func openAll(disks []diskSpec, slots slots, log *slog.Logger) ([]*export, error) {
	if err := slots.open(); err != nil {
		return nil, err
	}
	var exports []*export
	var errs *multierror.Error
	for i, d := range disks {
		e := &export{spec: d, log: log.With("disk", d.path)}
		exports = append(exports, e)
		errs = multierror.Append(errs, e.open(), slots.check(i))
	}
	if errs.ErrorOrNil() != nil {
		return exports, errs
	}
	for i, e := range exports {
		errs = multierror.Append(errs, e.place(slots, i))
	}
	return exports, errs.ErrorOrNil()
}

// open opens the disk.
func (e *export) open() (err error) {
	e.spec.open.Log, e.spec.offer.Log = e.log, e.log
	e.store, err = disk.Open(e.spec.path, e.spec.open)
	return err
}

// place makes the slot, and the function for it.
func (e *export) place(slots slots, i int) (err error) {
	if e.slot, e.spec.offer.Room, err = slots.add(i, e.log); err != nil {
		return err
	}
	e.fn, err = epfbackend.New(e.store, e.spec.offer)
	return err
}

// closeAll closes in the order opposite to open, when the slots are closed.
func closeAll(exports []*export) error {
	var errs *multierror.Error
	for _, e := range exports {
		if e.fn != nil {
			errs = multierror.Append(errs, e.fn.Close())
		}
		if e.store != nil {
			errs = multierror.Append(errs, e.store.Close())
		}
	}
	return errs.ErrorOrNil()
}

// serveAll runs all exports until ctx ends or one of them cannot go on. The sizes of disks
// are looked at when it is told to.
func serveAll(ctx context.Context, exports []*export, look <-chan os.Signal) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, e := range exports {
		group.Go(func() error {
			if err := e.slot.Serve(ctx, e.fn); err != nil {
				return fmt.Errorf("%s: %w", e.spec.path, err)
			}
			return nil
		})
	}
	group.Go(func() error {
		watchSizes(ctx, exports, look)
		return nil
	})
	return group.Wait()
}

// watchSizes lets each export look at its disk's size, now and then and when told to,
// until ctx ends.
func watchSizes(ctx context.Context, exports []*export, look <-chan os.Signal) {
	tick := time.NewTicker(resizePeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look:
		case <-tick.C:
		}
		for _, e := range exports {
			if err := e.fn.Refresh(); err != nil {
				e.log.Warn("the disk's size cannot be read", "err", err)
			}
		}
	}
}

// stopOnSignal returns a context that ends with the first SIGINT or SIGTERM.
// The second one ends the process.
func stopOnSignal(log *slog.Logger) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	ended := make(chan struct{})
	go func() {
		select {
		case <-signals:
			log.Info("stopping")
			tellSupervisor(stateStopping, log)
			cancel()
		case <-ended:
			return
		}
		select {
		case <-signals:
			log.Warn("stopped at once: what was in flight is not finished, and nothing was flushed")
			os.Exit(exitFailed)
		case <-ended:
		}
	}()
	var once sync.Once
	return ctx, func() {
		once.Do(func() {
			signal.Stop(signals)
			close(ended)
			cancel()
		})
	}
}

func joinErrors(errs ...error) error {
	return multierror.Append(nil, errs...).ErrorOrNil()
}
