package epfbackend

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
	"github.com/vblk-ep/vblk-ep/vring"
)

const (
	deviceType        = virtioblk.DeviceType
	classOtherStorage = 0x018000

	// DefaultQueues and DefaultQueueSize are what an Options of zeroes means.
	DefaultQueues    = 1
	DefaultQueueSize = 256

	minQueueSize = 4 // header, status and at least two data descriptors
)

// ErrOption is the cause of every error of Options.Check.
var ErrOption = errors.New("invalid option")

// Options says how a disk is presented. The zero value is ready for use.
type Options struct {
	// Serial is what GET_ID returns: up to 20 bytes of ASCII. Empty means the
	// disk's own.
	Serial string

	// Queues are the virtqueues, one worker each, 1 to 1024; 0 means
	// DefaultQueues. Where several are served trap-free, a driver's set-up must be
	// watched without a gap, and one that was missed is refused.
	Queues    int
	QueueSize int // entries of each, a power of two, 4 to 32768; 0 means DefaultQueueSize

	// WriteThrough makes each write durable before it completes, until the
	// driver turns the write cache on.
	WriteThrough bool

	// TrapFree is for controllers that do not see register accesses: the BAR is
	// plain memory, and what the driver did is found by looking.
	TrapFree bool

	// Room is what the endpoint controller has that the function is for: it is put
	// where that has room for it, and is trap-free. nil is a virtual slot, which has
	// its layout built in.
	Room *epc.Room

	// Doorbell16 says that a notification carries 16 bits at most, as where it is
	// written to an interrupt controller. Trap-free, a disk whose blocks are not of
	// 512 bytes cannot be offered then.
	Doorbell16 bool

	// Rings are the ring formats that are offered. A trap-free function serves
	// both, whatever this says.
	Rings RingFormats

	// Poll is how long the worker of a queue looks for something to do before it
	// sleeps.
	Poll Poll

	// PinMemory has each worker hold the host memory that is lent to the disk, with all
	// its pages, so that the kernel need not look them up for each request. It is for
	// hosts whose memory is all there, and stays what it is while it is mapped.
	PinMemory bool

	// CPUs are the processors that workers are bound to: one each, in turn. Without
	// any they run where the kernel lets them.
	CPUs []int

	// Engine is how disk I/O is done.
	Engine disk.EngineKind

	// SubsystemVendor and SubsystemDevice identify the product in
	// configuration space; 0 means virtio's own.
	SubsystemVendor, SubsystemDevice uint16

	// Log gets what an operator should know; nil means nothing is logged.
	Log *slog.Logger
}

// Check says in one sentence what is wrong with o, and what would be right.
func (o Options) Check() error {
	o.setDefaults()
	switch {
	case o.Queues < 1 || o.Queues > maxQueues:
		return fmt.Errorf("%w: queues=%d: choose 1 to %d", ErrOption, o.Queues, maxQueues)
	case o.QueueSize < minQueueSize || o.QueueSize > vring.MaxSize || bits.OnesCount(uint(o.QueueSize)) != 1:
		return fmt.Errorf("%w: queue-size=%d: choose a power of two from %d to %d",
			ErrOption, o.QueueSize, minQueueSize, vring.MaxSize)
	case o.Poll < PollAlways:
		return fmt.Errorf("%w: poll=%d: choose a time above 0", ErrOption, o.Poll)
	case len(o.Serial) > virtioblk.IDLen:
		return fmt.Errorf("%w: serial=%s has %d characters: choose at most %d",
			ErrOption, o.Serial, len(o.Serial), virtioblk.IDLen)
	}
	if err := checkCPUs(o.CPUs); err != nil {
		return err
	}
	for _, c := range []byte(o.Serial) {
		if c < ' ' || c > '~' {
			return fmt.Errorf("%w: serial=%q: use printable ASCII characters", ErrOption, o.Serial)
		}
	}
	return nil
}

func (o *Options) setDefaults() {
	if o.Queues == 0 {
		o.Queues = DefaultQueues
	}
	if o.QueueSize == 0 {
		o.QueueSize = DefaultQueueSize
	}
	if o.SubsystemVendor == 0 {
		o.SubsystemVendor = virtiopci.VendorID
	}
	if o.SubsystemDevice == 0 {
		o.SubsystemDevice = virtiopci.DeviceIDBase + deviceType
	}
	if o.Room != nil {
		o.TrapFree = true
		o.Doorbell16 = o.Doorbell16 || o.Room.Doorbell.Kind != epc.NoDoorbell
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}
