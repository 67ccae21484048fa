package epfbackend_test

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk/disktest"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// faulty is a setup whose disk obeys the rules that are added to *f later.
func faulty(s setup, f **disktest.Faults) setup {
	s.wrap = func(store disk.Store) disk.Store {
		*f = disktest.Wrap(store)
		return *f
	}
	return s
}

func TestSeveralQueues(t *testing.T) {
	for _, s := range []setup{{}, {faults: transfersOnly()}, {link: shuffled(7)}} {
		engines(t, func(t *testing.T, o epfbackend.Options) {
			o.Queues = 4
			s.options = o
			r := newSlot(t, s)
			c, err := r.dev.Config()
			require.NoError(t, err)
			require.EqualValues(t, 4, c.NumQueues)
			r.negotiate()
			var list []*load
			for i := range 4 {
				list = append(list, newLoad(t, r.newQueue(rc.QueueConfig{Index: i, Indirect: 4 * (i % 2)}), 8, 8*i))
			}
			require.NoError(t, r.dev.Start())
			loads(t, func() {
				for _, l := range list {
					l.progress(t, 100)
				}
			}, list...)
		})
	}
}

func TestQueueSizes(t *testing.T) {
	for size := 4; size <= 32768; size *= 2 {
		o := epfbackend.Options{QueueSize: size}
		r := newSlot(t, setup{options: o})
		limit, err := r.dev.QueueLimit(0)
		require.NoError(t, err)
		require.Equal(t, size, limit)
		r.negotiate()
		c, err := r.dev.Config()
		require.NoError(t, err)
		require.EqualValues(t, min(size-2, 254), c.SegMax)
		r.q = r.newQueue(rc.QueueConfig{})
		require.NoError(t, r.dev.Start())

		// As many as fit, or more than a worker has at the disk at a time.
		var list []*rc.Request
		for range min(r.q.Free()/3, 1500) {
			q := r.request(sector)
			q.Sector = uint64(len(list))
			list = append(list, q)
		}
		for _, kind := range []virtioblk.RequestType{virtioblk.TypeOut, virtioblk.TypeIn} {
			for round := range 3 {
				for i, q := range list {
					if q.Type = kind; kind == virtioblk.TypeOut {
						copy(q.Data(), pattern(sector, byte(i+round)))
					} else {
						clear(q.Data())
					}
					require.NoError(t, r.q.Submit(q))
				}
				r.finish(list)
			}
		}
		for i, q := range list {
			require.True(t, bytes.Equal(pattern(sector, byte(i+2)), q.Data()), "request %d", i)
		}
	}
}

// All memory goes away and comes back under a load, again and again, as firmware
// does it. Nothing is lost.
func TestRemapUnderLoad(t *testing.T) {
	for name, s := range map[string]setup{
		"lent": {}, "transfers": {faults: transfersOnly()}, "no EVENT_IDX": {refuse: []virtio.Feature{virtio.EventIdx}},
		"DMA": {link: shuffled(8)},
	} {
		t.Run(name, func(t *testing.T) {
			engines(t, func(t *testing.T, o epfbackend.Options) {
				s.options = o
				r := newRig(t, s)
				l := newLoad(t, r.q, 16, 0)
				loads(t, func() {
					for n := range 100 {
						require.NoError(t, rc.UnmapMemory(r.slot, r.mem))
						if n%10 == 0 {
							time.Sleep(2 * time.Millisecond)
						}
						require.NoError(t, rc.MapMemory(r.slot, r.mem))
						if n%3 == 0 {
							l.progress(t, 20)
						}
					}
				}, l)
			})
		})
	}
}

// After a reset the device touches nothing of the host's, whatever was in flight.
func TestResetUnderLoad(t *testing.T) {
	for name, s := range map[string]setup{"lent": {}, "transfers": {faults: transfersOnly()}, "DMA": {link: shuffled(9)}} {
		t.Run(name, func(t *testing.T) {
			engines(t, func(t *testing.T, o epfbackend.Options) {
				s.options, s.queue = o, rc.QueueConfig{Size: 64}
				var faults *disktest.Faults
				r := newRig(t, faulty(s, &faults))
				l := newLoad(t, r.q, 8, 0)
				for n := range 200 {
					faults.Clear()
					faults.Add(disktest.Rule{Skip: n % 7, Count: 3, Delay: time.Duration(n%5) * time.Millisecond})
					l.q = r.q
					require.NoError(t, l.submit())
					for range n % 3 {
						require.NoError(t, l.turn(true))
					}
					if n%2 == 0 {
						require.NoError(t, r.dev.Reset())
					} else {
						require.NoError(t, r.slot.Reset())
						r.reopen()
					}
					r.untouched(l)
					r.start()
				}
				r.alive()
			})
		})
	}
}

// reopen does what a host does after a function-level reset.
func (r *rig) reopen() {
	require.NoError(r.t, r.dev.Close())
	var err error
	r.dev, err = rc.Open(r.slot)
	require.NoError(r.t, err)
	s, err := r.dev.Status()
	require.NoError(r.t, err)
	require.Zero(r.t, s)
}

// untouched makes sure that nobody writes into the requests of a load any more.
func (r *rig) untouched(l *load) {
	r.t.Helper()
	mark := bytes.Repeat([]byte{0xa5}, areaSize+1)
	for i := range l.slots {
		copy(r.mem.Bytes(l.slots[i].DataAddr(), len(mark)), mark)
	}
	time.Sleep(300 * time.Microsecond)
	for i := range l.slots {
		require.True(r.t, bytes.Equal(mark, r.mem.Bytes(l.slots[i].DataAddr(), len(mark))), "written after the reset")
	}
}

func TestQueueResetUnderLoad(t *testing.T) {
	for _, link := range []*loopback.Link{nil, shuffled(11)} {
		queueResets(t, link)
	}
}

func queueResets(t *testing.T, link *loopback.Link) {
	engines(t, func(t *testing.T, o epfbackend.Options) {
		o.Queues = 2
		var faults *disktest.Faults
		r := newSlot(t, faulty(setup{options: o, link: link, queue: rc.QueueConfig{Size: 64}}, &faults))
		r.negotiate()
		r.q = r.newQueue(r.queue)
		other := newLoad(t, r.newQueue(rc.QueueConfig{Index: 1, Size: 64}), 8, 16)
		l := newLoad(t, r.q, 16, 0)
		require.NoError(t, r.dev.Start())
		loads(t, func() {
			for n := range 100 {
				faults.Clear()
				faults.Add(disktest.Rule{Skip: n % 7, Count: 3, Delay: time.Duration(n%4) * time.Millisecond})
				require.NoError(t, l.submit())
				for range n % 3 {
					require.NoError(t, l.turn(true))
				}
				require.NoError(t, r.q.Renew())
				r.untouched(l)
			}
			other.progress(t, 10)
		}, other)
		r.alive()
	})
}

// The function is pulled out under a load. Nothing of the host stays in use, and
// the next host finds it as new.
func TestUnplugUnderLoad(t *testing.T) {
	for _, s := range []setup{{}, {faults: transfersOnly()}, {link: shuffled(10)}} {
		engines(t, func(t *testing.T, o epfbackend.Options) {
			o.Queues = 2
			s.options = o
			r := newSlot(t, s)
			for n := range 15 {
				if n > 0 {
					r.plug()
				}
				r.negotiate()
				var list []*load
				for i := range 2 {
					list = append(list, newLoad(t, r.newQueue(rc.QueueConfig{Index: i, Size: 64}), 16, 16*i))
				}
				require.NoError(t, r.dev.Start())
				loads(t, func() {
					list[0].progress(t, int64(10*n))
					for _, l := range list {
						l.alone.Store(true)
					}
					require.NoError(t, r.slot.Unplug())
				}, list...)
				for _, l := range list {
					r.untouched(l)
					require.ErrorIs(t, l.q.Notify(), loopback.ErrUnplugged)
				}
				require.NoError(t, r.dev.Close())
				r.closed = true
			}
		})
	}
}

// A queue that is started during a pause waits for the end of it.
func TestStartDuringAPause(t *testing.T) {
	r := newSlot(t, setup{})
	require.NoError(t, r.fn.Pause(t.Context()))
	r.start()
	q := r.request(sector)
	require.NoError(t, r.q.Submit(q))
	require.NoError(t, r.q.Kick())
	time.Sleep(20 * time.Millisecond)
	require.Zero(t, r.q.UsedIndex())
	r.fn.Resume()
	r.finishWith(q, virtioblk.StatusOK)
	require.NoError(t, r.fn.Pause(t.Context()))
	require.NoError(t, r.dev.Reset(), "a paused queue can be reset")
	r.fn.Resume()
	r.revive()
}

// A queue that comes into being during a pause, and gets to work when that is over, is
// waited for by the next one, and knows what the map has become.
func TestPauseAfterAStartDuringAPause(t *testing.T) {
	var faults *disktest.Faults
	s := faulty(setup{}, &faults)
	wrap, open := s.wrap, make(chan struct{})
	s.wrap = func(store disk.Store) disk.Store { return lateEngine{wrap(store), open} }
	r := newSlot(t, s)
	require.NoError(t, r.fn.Pause(t.Context()))
	r.start()
	require.NoError(t, rc.UnmapMemory(r.slot, r.mem))
	require.NoError(t, rc.MapMemory(r.slot, r.mem))
	close(open)

	q := r.request(sector)
	answer := r.hold(faults, q, disk.Read)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	assert.ErrorIs(t, r.fn.Pause(ctx), context.DeadlineExceeded)
	close(answer)
	require.NoError(t, r.fn.Pause(t.Context()))
	r.fn.Resume()
	r.finishWith(q, virtioblk.StatusOK)
}

// A driver that begins again and again does not fill the log.
func TestNegotiationsAreLoggedSeldom(t *testing.T) {
	r := newSlot(t, setup{})
	began := time.Now()
	for range 100 {
		r.negotiate()
	}
	lines := strings.Count(r.log.String(), "features negotiated")
	require.Positive(t, lines)
	require.LessOrEqual(t, lines, 2+int(time.Since(began)/time.Second))
}

// lateEngine is a disk whose engines take as long as they are told to.
type lateEngine struct {
	disk.Store
	open <-chan struct{}
}

func (s lateEngine) NewEngine(kind disk.EngineKind, depth, doorbell int) (disk.Engine, error) {
	<-s.open
	return s.Store.NewEngine(kind, depth, doorbell)
}

func TestResize(t *testing.T) {
	for _, intx := range []bool{false, true} {
		r := newSlot(t, setup{intx: intx})
		resize := func(size int64) {
			require.NoError(t, os.Truncate(r.path, size))
			require.NoError(t, r.fn.Refresh())
		}
		capacity := func() uint64 {
			c, err := r.dev.Config()
			require.NoError(t, err)
			return c.Capacity
		}
		generation := func() uint64 {
			g, err := r.dev.Read(virtiopci.ConfigGeneration, 1)
			require.NoError(t, err)
			return g
		}
		resize(2 * diskSize) // nobody to be told
		require.EqualValues(t, 2*diskSize/sector, capacity())
		r.start()
		before := generation()
		require.NoError(t, r.fn.Refresh())
		require.Equal(t, before, generation())
		require.False(t, r.configInterrupt(20*time.Millisecond), "nothing has changed")

		resize(3 * diskSize)
		require.True(t, r.configInterrupt(patience))
		require.NotEqual(t, before, generation())
		require.EqualValues(t, 3*diskSize/sector, capacity())
		r.must(virtioblk.TypeOut, 3*diskSize/sector-8, pattern(4096, 1))

		resize(diskSize)
		require.True(t, r.configInterrupt(patience))
		r.fails(virtioblk.StatusIOErr, virtioblk.TypeIn, diskSize/sector, make([]byte, sector))
		r.must(virtioblk.TypeIn, diskSize/sector-1, make([]byte, sector))
		r.unplug()
		resize(2 * diskSize)
	}
}

// An engine that cannot be made is the device's failure, not the process's.
func TestNoDescriptorsLeft(t *testing.T) {
	r := newSlot(t, setup{})
	r.negotiate()
	r.q = r.newQueue(r.queue)
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	none := limit
	none.Cur = 3
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &none))
	err := r.dev.Start()
	for range 1000 {
		if s, _ := r.dev.Status(); s.Has(virtio.NeedsReset) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	require.NoError(t, err)
	r.broken()
	require.NoError(t, rc.UnmapMemory(r.slot, r.mem)) // a worker without an engine pauses too
	require.NoError(t, rc.MapMemory(r.slot, r.mem))
	r.revive()
}
