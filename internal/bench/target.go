package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// ErrTarget reports a function that cannot be used as it was asked for.
var ErrTarget = errors.New("target")

// Setup says how the driver uses the function.
type Setup struct {
	Queues int
	Depth  int  // requests in flight on each queue
	Block  int  // bytes of data of each
	Packed bool // packed rings instead of split ones
	HiPri  bool // busy polling for completions, without interrupts
	Direct bool // direct descriptors, although indirect ones are offered
	// Batch is how many completions are reaped before the requests for them are
	// submitted again; 0: all there are.
	Batch int
}

// Target is a function that is up and running. It belongs to one goroutine.
type Target struct {
	Setup
	Server   int    // process that listens at the socket; 0 when that is not known
	Capacity int64  // of the disk in bytes
	BlkSize  uint32 // logical block size in bytes
	ReadOnly bool

	bus      *rc.VFIOUser
	dev      *rc.Device
	mem      *vringtest.Memory
	queues   []*rc.Queue
	requests [][]*rc.Request // of each queue
	flushing *rc.Request     // on the first queue
	vectors  bool            // queues have interrupts of their own
}

// understood is what the driver can do with a function, as a stock driver can.
// Ring formats and MQ are added where they are wanted.
var understood = virtio.NewFeatures(
	virtio.Version1, virtio.AccessPlatform, virtio.OrderPlatform, virtio.IndirectDesc, virtio.EventIdx,
	virtioblk.SizeMax, virtioblk.SegMax, virtioblk.ReadOnly, virtioblk.BlkSize, virtioblk.Flush,
	virtioblk.HasTopology, virtioblk.ConfigWCE,
)

// attempts bounds how often a function is set up that missed one of several queues.
const attempts = 5

// errMissed reports that a function needs a reset as soon as it is set up.
var errMissed = fmt.Errorf("%w: it needs a reset right after it was set up: see its log", ErrTarget)

// Connect brings the function behind a vfio-user socket up. The target must be
// closed. A trap-free function with several queues may miss one on a busy machine, and
// is set up again then.
func Connect(ctx context.Context, socket string, s Setup) (t *Target, err error) {
	for range attempts {
		if t, err = connect(ctx, socket, s); !errors.Is(err, errMissed) {
			return t, err
		}
	}
	return t, err
}

func connect(ctx context.Context, socket string, s Setup) (t *Target, err error) {
	bus, err := rc.DialVFIOUser(ctx, socket, vfiouser.ClientOptions{})
	if err != nil {
		return nil, err
	}
	t = &Target{Setup: s, bus: bus}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
			t = nil
		}
	}()
	if t.Server, err = bus.PeerPID(); err != nil {
		return t, err
	}
	if t.dev, err = rc.Open(bus); err != nil {
		return t, err
	}
	for _, step := range []func() error{t.negotiate, t.learn, t.useInterrupts, t.makeQueues, t.dev.Start, t.settle} {
		if err := step(); err != nil {
			return t, err
		}
	}
	return t, nil
}

func (t *Target) negotiate() error {
	want := understood
	if t.Packed {
		want = want.With(virtio.RingPacked)
	}
	if t.Queues > 1 {
		want = want.With(virtioblk.MQ)
	}
	if t.Direct {
		want = want.Without(virtio.IndirectDesc)
	}
	if err := t.dev.Negotiate(want); err != nil {
		return err
	}
	if t.Packed && !t.dev.Accepted().Has(virtio.RingPacked) {
		return fmt.Errorf("%w: it offers no packed ring: choose the split one", ErrTarget)
	}
	return nil
}

// useInterrupts turns interrupts on: one for changes of the configuration, and one a
// queue. Who polls for completions does without where there are too few; else its
// queues have one and suppress it, because a trap-free function knows a queue of
// several by its vector.
func (t *Target) useInterrupts() error {
	n := t.Queues + 1
	if has := t.dev.MSIX.Vectors; has < n {
		if t.HiPri {
			return nil
		}
		return fmt.Errorf("%w: %d queues need %d interrupts, and it has %d: use fewer queues, or hipri", ErrTarget, t.Queues, n, has)
	}
	t.vectors = true
	if err := t.dev.UseMSIX(n); err != nil {
		return err
	}
	return t.dev.Write(virtiopci.ConfigMSIXVector, 2, 0)
}

// pace is the time between the set-up of one queue and the next: a stock driver
// requests an interrupt and allocates a ring meanwhile, and trap-free functions need
// that time to see what was written.
const pace = time.Millisecond

// settle waits until a function with several queues has had time to say that it
// missed one.
func (t *Target) settle() error {
	if t.Queues == 1 {
		return nil
	}
	time.Sleep(50 * pace)
	status, err := t.dev.Status()
	if err == nil && status.Has(virtio.NeedsReset) {
		return errMissed
	}
	return err
}

// learn reads what the function says of itself, and checks that the setup fits.
func (t *Target) learn() error {
	c, err := t.dev.Config()
	if err != nil {
		return err
	}
	f := t.dev.Accepted()
	t.Capacity = int64(min(c.Capacity, 1<<53)) * virtioblk.SectorSize
	t.ReadOnly = f.Has(virtioblk.ReadOnly)
	t.BlkSize = virtioblk.SectorSize
	if f.Has(virtioblk.BlkSize) {
		t.BlkSize = c.BlkSize
	}
	queues := 1
	if f.Has(virtioblk.MQ) {
		queues = int(c.NumQueues)
	}
	switch {
	case t.BlkSize == 0 || t.Block%int(t.BlkSize) != 0:
		return fmt.Errorf("%w: its blocks have %d bytes, and bs is %d: choose a multiple", ErrTarget, t.BlkSize, t.Block)
	case f.Has(virtioblk.SizeMax) && t.Block > int(c.SizeMax):
		return fmt.Errorf("%w: it takes segments of at most %d bytes, and bs is %d: choose less", ErrTarget, c.SizeMax, t.Block)
	case t.Queues > queues:
		return fmt.Errorf("%w: it has %d queues, not %d: choose fewer", ErrTarget, queues, t.Queues)
	}
	return nil
}

// chain is how many descriptors a request takes: header, data, status.
const chain = 3

// makeQueues makes guest memory for everything, and the queues in it.
func (t *Target) makeQueues() error {
	cfg := rc.QueueConfig{Vector: virtiopci.NoVector, Batch: t.Batch}
	room := 1
	if t.dev.Accepted().Has(virtio.IndirectDesc) {
		cfg.Indirect = chain
	} else {
		room = chain
	}
	size := 1 << 20
	for i := range t.Queues {
		n, err := t.dev.QueueLimit(i)
		if err != nil {
			return err
		}
		if n/room < t.Depth {
			return fmt.Errorf("%w: queue %d has room for %d requests, and iodepth is %d: choose less, or a larger queue", ErrTarget, i, n/room, t.Depth)
		}
		size += n*(16+2+8+16*cfg.Indirect) + 4096 + rc.RequestsLen(t.Depth, t.Block)
	}
	const base, pages = 1 << 20, 2 << 20
	var err error
	if t.mem, err = vringtest.NewMemory(vringtest.Range{Base: base, Size: (size + pages - 1) &^ (pages - 1)}); err != nil {
		return err
	}
	if err := rc.MapMemory(t.bus, t.mem); err != nil {
		return err
	}
	for i := range t.Queues {
		if t.Queues > 1 {
			time.Sleep(pace)
		}
		cfg.Index = i
		if t.vectors {
			cfg.Vector = uint16(i + 1)
		}
		q, err := rc.NewQueue(t.dev, t.mem, cfg)
		if err != nil {
			return err
		}
		list, err := q.NewRequests(t.Depth, t.Block)
		if err != nil {
			return err
		}
		t.queues, t.requests = append(t.queues, q), append(t.requests, list)
	}
	t.flushing, err = t.queues[0].NewRequest(0)
	return err
}

// flush makes what was written durable, and shows the function that this driver
// flushes, so that it may cache: a trap-free one cannot know it otherwise.
func (t *Target) flush() error {
	if f := t.dev.Accepted(); !f.Has(virtioblk.Flush) && !f.Has(virtioblk.ConfigWCE) {
		return nil
	}
	t.flushing.Type = virtioblk.TypeFlush
	status, err := t.queues[0].Do(t.flushing)
	if err == nil && status != virtioblk.StatusOK {
		err = fmt.Errorf("%w: flush: %v", ErrIO, status)
	}
	return err
}

// Close resets the function and ends the connection.
func (t *Target) Close() error {
	var errs []error
	if t.dev != nil {
		errs = append(errs, t.dev.Reset(), t.dev.Close())
	}
	errs = append(errs, t.bus.Close())
	if t.mem != nil {
		errs = append(errs, t.mem.Close())
	}
	return errors.Join(errs...)
}
