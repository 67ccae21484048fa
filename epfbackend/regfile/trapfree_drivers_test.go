package regfile

import (
	"fmt"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// This file models the stock drivers: the accesses that each makes to the common
// configuration, one by one and in order, with what it insists on where it reads.
// A driver does not look at a register between two of these steps, and does not
// know of the endpoint.

// step is one access.
type step struct {
	name   string
	write  bool
	off    int
	width  int
	value  uint32 // written, or insisted on if only is not 0
	only   uint32 // the bits that a reader insists on
	paced  bool   // a look at queue_enable, see the hole that TrapFree describes
	visits bool   // the endpoint has to do with this register
}

func (s step) String() string {
	if s.write {
		return fmt.Sprintf("%s = %#x", s.name, s.value)
	}
	return fmt.Sprintf("%s is %#x?", s.name, s.value)
}

// truth is what is so once a step has been taken.
type truth struct {
	set    int // counts set-ups, from 1
	live   bool
	queues []Queue
}

// script is a row of drivers, one after the other on the same registers.
type script struct {
	offered   uint32
	num       int // of queues
	steps     []step
	truths    []truth // one more than steps
	resets    []int   // the steps that reset
	now       truth
	first     uint32 // what stands in queue_size at first
	size      uint32 // and now
	addresses []Queue
}

func newScript(num int) *script {
	return &script{offered: 0x10006817, num: num, first: 256, size: 256, truths: []truth{{}}}
}

func (s *script) add(st step) {
	switch st.off &^ 3 {
	case statusWord, enableWord:
		st.visits = true
	case markWord:
		st.visits = s.num > 1
	default:
		st.visits = st.write && st.off >= sizeWord // the endpoint stores to none of these
	}
	s.steps = append(s.steps, st)
	s.truths = append(s.truths, s.now)
}

func (s *script) set(off, width int, v uint32) {
	r, _ := virtiopci.RegisterAt(off, width)
	s.add(step{name: r.Name, write: true, off: off, width: width, value: v})
}

func (s *script) expect(off, width int, v uint32) { s.expectBits(off, width, v, 0xffffffff) }

func (s *script) expectBits(off, width int, v, only uint32) {
	r, _ := virtiopci.RegisterAt(off, width)
	s.add(step{name: r.Name, off: off, width: width, value: v, only: only & uint32(1<<(8*width)-1), paced: off == virtiopci.QueueEnable})
}

func (s *script) status(v virtio.Status) {
	switch {
	case v == 0:
		s.now.live, s.addresses = false, nil
		s.resets = append(s.resets, len(s.steps))
	case v.Has(virtio.DriverOK):
		s.now.set++
		s.now.live, s.now.queues = true, s.addresses
	}
	s.set(virtiopci.DeviceStatus, 1, uint32(v))
}

// addStatus is how most drivers set a bit: they read the others.
func (s *script) addStatus(was, bit virtio.Status) virtio.Status {
	s.expect(virtiopci.DeviceStatus, 1, uint32(was))
	s.status(was | bit)
	return was | bit
}

func (s *script) features(dwords int) {
	for i := range dwords {
		s.set(virtiopci.DeviceFeatureSelect, 4, uint32(i))
		s.expect(virtiopci.DeviceFeature, 4, s.offered)
	}
}

func (s *script) accept(dwords int, low, high uint32) {
	for i := range dwords {
		s.set(virtiopci.DriverFeatureSelect, 4, uint32(i))
		s.set(virtiopci.DriverFeature, 4, []uint32{low, high, 0, 0}[i])
	}
}

func (s *script) sel(i int) { s.set(virtiopci.QueueSelect, 2, uint32(i)) }

func (s *script) half(off int, v uint64) {
	s.set(off, 4, uint32(v))
	s.set(off+4, 4, uint32(v>>32))
}

func (s *script) rings(q Queue) {
	s.half(virtiopci.QueueDesc, q.Desc)
	s.half(virtiopci.QueueDriver, q.Driver)
	s.half(virtiopci.QueueDevice, q.Device)
	q.Size = int(s.size)
	s.addresses = append(s.addresses, q)
}

func (s *script) setSize(v uint32) {
	s.size = v
	s.set(virtiopci.QueueSize, 2, v)
}

const noFailure = 0xffffffff &^ uint32(virtio.NeedsReset)

// linux is virtio_pci with virtio_blk: two dwords of features before, four since
// 128-bit features. It sets up all queues and enables them after that.
func (s *script) linux(dwords int, rings ...Queue) {
	s.linuxProbe(dwords, rings)
	s.linuxReady(len(rings))
}

func (s *script) reset() {
	s.status(0)
	s.expect(virtiopci.DeviceStatus, 1, 0)
}

func (s *script) linuxProbe(dwords int, rings []Queue) {
	s.reset()
	v := s.addStatus(0, virtio.Acknowledge)
	v = s.addStatus(v, virtio.Driver)
	s.features(dwords)
	s.accept(dwords, 0x10006817, 0x17)
	v = s.addStatus(v, virtio.FeaturesOK)
	s.expectBits(virtiopci.DeviceStatus, 1, uint32(v), uint32(virtio.FeaturesOK))
	s.set(virtiopci.ConfigMSIXVector, 2, 0)
	s.expect(virtiopci.ConfigMSIXVector, 2, 0)
	s.linuxQueues(rings)
}

func (s *script) linuxQueues(rings []Queue) {
	for i, q := range rings {
		s.expect(virtiopci.NumQueues, 2, uint32(s.num))
		s.sel(i)
		s.expect(virtiopci.QueueSize, 2, s.size)
		s.sel(i)
		s.expect(virtiopci.QueueEnable, 2, 0)
		s.sel(i)
		s.setSize(s.size)
		s.sel(i)
		s.rings(q)
		s.sel(i)
		s.set(virtiopci.QueueMSIXVector, 2, uint32(i+1))
		s.expect(virtiopci.QueueMSIXVector, 2, uint32(i+1))
		s.sel(i)
		s.expect(virtiopci.QueueNotifyOff, 2, 0)
	}
}

func (s *script) linuxReady(n int) {
	for i := range n {
		s.sel(i)
		s.set(virtiopci.QueueEnable, 2, 1)
	}
	v := virtio.Acknowledge | virtio.Driver | virtio.FeaturesOK
	s.expectBits(virtiopci.DeviceStatus, 1, 0, uint32(virtio.DriverOK))
	s.addStatus(v, virtio.DriverOK)
}

// linuxRemove is an orderly removal: reset, then the queues' vectors are taken
// back.
func (s *script) linuxRemove(n int) {
	s.reset()
	for i := range n {
		s.sel(i)
		s.set(virtiopci.QueueMSIXVector, 2, virtiopci.NoVector)
		s.expect(virtiopci.QueueMSIXVector, 2, virtiopci.NoVector)
	}
	s.set(virtiopci.ConfigMSIXVector, 2, virtiopci.NoVector)
	s.expect(virtiopci.ConfigMSIXVector, 2, virtiopci.NoVector)
}

// linuxRetries is what Linux does if it gets no interrupt for a queue after it set
// queues up: it lets go of them, and sets others up without negotiating again.
func (s *script) linuxRetries(dwords int, first, then []Queue) {
	s.linuxProbe(dwords, first)
	for i := range first {
		s.sel(i)
		s.set(virtiopci.QueueMSIXVector, 2, virtiopci.NoVector)
		s.expect(virtiopci.QueueMSIXVector, 2, virtiopci.NoVector)
	}
	s.addresses = nil
	for _, v := range []uint32{virtiopci.NoVector, 0} {
		s.set(virtiopci.ConfigMSIXVector, 2, v)
		s.expect(virtiopci.ConfigMSIXVector, 2, v)
	}
	s.linuxQueues(then)
	s.linuxReady(len(then))
}

// seabios does not read the status after its reset, takes at most 128 entries
// and enables its queue at once.
func (s *script) seabios(q Queue) {
	s.status(0)
	v := virtio.Acknowledge | virtio.Driver
	s.status(v)
	s.features(2)
	s.accept(2, 0x6, 0x3)
	v |= virtio.FeaturesOK
	s.status(v)
	s.expectBits(virtiopci.DeviceStatus, 1, uint32(v), uint32(virtio.FeaturesOK))
	s.sel(0)
	s.expect(virtiopci.QueueSize, 2, s.size)
	if s.size > 128 {
		s.setSize(128)
		s.expect(virtiopci.QueueSize, 2, 128)
	}
	s.expect(virtiopci.QueueEnable, 2, 0)
	s.rings(q)
	s.set(virtiopci.QueueEnable, 2, 1)
	s.expect(virtiopci.QueueNotifyOff, 2, 0)
	s.status(v | virtio.DriverOK)
}

// edk2 leaves queue_size and queue_enable as they are until it enables the queue,
// and selects queue 0 again for each notification.
func (s *script) edk2(q Queue) {
	s.status(0)
	s.status(virtio.Acknowledge)
	v := virtio.Acknowledge | virtio.Driver
	s.status(v)
	s.features(2)
	s.accept(2, 0x0, 0x3)
	v |= virtio.FeaturesOK
	s.status(v)
	s.expectBits(virtiopci.DeviceStatus, 1, uint32(v), noFailure)
	s.sel(0)
	s.expect(virtiopci.QueueSize, 2, s.size)
	s.expect(virtiopci.QueueSize, 2, s.size) // as the size it wants
	s.rings(q)
	s.set(virtiopci.QueueEnable, 2, 1)
	s.status(v | virtio.DriverOK)
	s.expect(virtiopci.QueueSelect, 2, 0)
	s.notify()
	s.sel(0)
}

func (s *script) notify() {
	s.sel(0)
	s.expect(virtiopci.QueueNotifyOff, 2, 0)
}

// uboot sets ACKNOWLEDGE before its reset and not after, and enables its queue at
// once.
func (s *script) uboot(q Queue) {
	s.reset()
	v := s.addStatus(0, virtio.Driver)
	s.features(2)
	s.accept(2, 0x0, 0x1)
	v = s.addStatus(v, virtio.FeaturesOK)
	s.expectBits(virtiopci.DeviceStatus, 1, uint32(v), uint32(virtio.FeaturesOK))
	s.expect(virtiopci.NumQueues, 2, uint32(s.num))
	s.sel(0)
	s.expect(virtiopci.QueueSize, 2, s.size)
	s.expect(virtiopci.QueueEnable, 2, 0)
	s.setSize(s.size)
	s.rings(q)
	s.set(virtiopci.QueueEnable, 2, 1)
	s.addStatus(v, virtio.DriverOK)
	s.notify()
}

// ubootRemove resets, then takes its queue back.
func (s *script) ubootRemove() {
	s.reset()
	s.sel(0)
	s.set(virtiopci.QueueEnable, 2, 0)
}

// ring returns rings at an address. Areas of different n differ in both halves
// of each address, those of the same n are the same.
func ring(n uint64) Queue {
	at := n<<32 | n<<16
	return Queue{Desc: at | 0x1000, Driver: at | 0x2000, Device: at | 0x3000}
}

// low is a ring whose addresses differ from other such rings' in their lower
// halves only.
func low(n uint64) Queue {
	at := 1<<32 | n<<16
	return Queue{Desc: at | 0x1000, Driver: at | 0x2000, Device: at | 0x3000}
}
