package epfbackend_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk/disktest"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// Drivers at random write to a disk with a volatile cache until its power is cut, at
// any moment, and the server is gone with it. What then is on the medium must hold
// all that the driver could count on, and no sector that holds anything else than
// what was written there. The next drivers go on with it.
func TestPowerCut(t *testing.T) {
	lives := 40
	if testing.Short() {
		lives = 6
	}
	for name, c := range map[string]struct{ native, logical uint32 }{
		"512":         {512, 512},
		"4096":        {4096, 4096},
		"512 of 4096": {4096, 512},
	} {
		for _, trapFree := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/trap-free=%t", name, trapFree), func(t *testing.T) {
				const sectors = 128
				ledger := disktest.NewLedger(sectors)
				image := make([]byte, sectors*sector)
				seen := map[string]int{}
				for seed := range uint64(lives) {
					t.Run(fmt.Sprint(seed), func(t *testing.T) {
						l := newLife(t, ledger, image, c.native, c.logical, trapFree, seed, seen)
						l.live()
						image = l.disk.Image()
						require.NoError(t, ledger.Restart(image))
						l.disk.End()
					})
				}
				t.Logf("%v", seen)
				for _, what := range []string{"stable", "flushed", "toggled", "abandoned", "read", "packed", "split"} {
					require.NotZero(t, seen[what], "%s: the test does not show what it is for", what)
				}
			})
		}
	}
}

// life is what happens between two power cuts.
type life struct {
	*rig
	disk     *disktest.Volatile
	ledger   *disktest.Ledger
	rng      *rand.Rand
	trapFree bool
	unit     int // sectors
	seen     map[string]int

	idle    []*rc.Request // those that are not in flight
	tasks   []crashTask   // by the request's tag
	queues  []*rc.Queue
	on      bool // the cache, by the writeback byte
	counted bool // writes are stable when done, by what was negotiated
	flushed bool // this driver has sent a flush
	toggles int  // of the cache
}

// crashTask is a request in flight.
type crashTask struct {
	entry   *disktest.Entry
	mark    disktest.Mark
	toggles int
	through bool // the cache was off when it was submitted
}

func newLife(t *testing.T, l *disktest.Ledger, image []byte, native, logical uint32, trapFree bool, seed uint64, seen map[string]int) *life {
	rng := rand.New(rand.NewPCG(seed, uint64(native)<<20|uint64(logical)))
	c := &life{
		disk: disktest.NewVolatile(image, native, seed), ledger: l, rng: rng,
		trapFree: trapFree, unit: int(logical / sector), seen: seen,
	}
	options := epfbackend.Options{TrapFree: trapFree, Rings: epfbackend.RingBoth, Queues: 1 + rng.IntN(2)}
	if trapFree {
		options.Queues = 1
	}
	c.rig = newSlot(t, setup{
		path: fmt.Sprintf("null:%d", len(image)), polled: true, options: options,
		memory: []vringtest.Range{{Base: 0x10_0000, Size: 32 << 20}},
		wrap: func(disk.Store) disk.Store {
			s, err := disk.Emulate(c.disk, logical)
			require.NoError(t, err)
			return s
		},
	})
	return c
}

// live has one driver after the other use the device until there is no power.
func (l *life) live() {
	l.disk.CutAfter(l.rng.IntN(6000))
	for !l.disk.Dead() {
		l.attach()
		for n := l.rng.IntN(200); n > 0 && !l.disk.Dead(); n-- {
			l.act()
		}
		for drain := l.rng.IntN(2) == 0; drain && len(l.idle) < len(l.tasks) && !l.disk.Dead(); {
			l.collect()
		}
		// Now and then the power is cut while nothing happens at the disk.
		if l.rng.IntN(20) == 0 {
			l.disk.Cut()
		}
	}
	for end := time.Now().Add(5 * time.Millisecond); time.Now().Before(end); {
		l.collect() // what was done before, and is told only now
	}
}

// attach brings up a driver that knows some features and not others. What the last
// one had in flight is over by the time this one's first request is executed.
func (l *life) attach() {
	var refuse []virtio.Feature
	for _, f := range []virtio.Feature{virtio.RingPacked, virtioblk.Flush, virtioblk.ConfigWCE, virtio.EventIdx} {
		if l.rng.IntN(3) == 0 {
			refuse = append(refuse, f)
		}
	}
	l.refuse = append(refuse, virtio.NotificationData)
	l.negotiate()
	for i := range l.tasks {
		if e := l.tasks[i].entry; e != nil {
			l.ledger.Abandoned(e)
			l.seen["abandoned"]++
		}
	}
	l.tasks, l.idle, l.queues = nil, nil, nil
	for i := range l.options.Queues {
		l.queues = append(l.queues, l.newQueue(rc.QueueConfig{Index: i, Size: 32, Indirect: l.rng.IntN(2) * 4}))
	}
	const depth, most = 10, 16
	for i := range depth {
		r, err := l.queues[0].NewRequest(most * sector)
		require.NoError(l.t, err)
		r.Tag = i
		l.idle = append(l.idle, r)
	}
	l.tasks = make([]crashTask, depth)
	require.NoError(l.t, l.dev.Start())
	accepted := l.dev.Accepted()
	l.seen[map[bool]string{true: "packed", false: "split"}[accepted.Has(virtio.RingPacked)]]++
	l.on, l.flushed = l.writeback(), false
	l.counted = !l.trapFree && !accepted.Has(virtioblk.Flush) && !accepted.Has(virtioblk.ConfigWCE)
}

// act does something that a driver may do.
func (l *life) act() {
	may := l.dev.Accepted()
	switch chance := l.rng.IntN(100); {
	case chance < 4 && may.Has(virtioblk.ConfigWCE):
		l.on = l.rng.IntN(2) == 0
		l.setWriteback(map[bool]byte{true: 1}[l.on])
		l.toggles++
		l.seen["toggled"]++
	case chance < 20:
		l.collect()
		time.Sleep(time.Duration(l.rng.IntN(50)) * time.Microsecond)
	default:
		for len(l.idle) == 0 && !l.disk.Dead() {
			l.collect()
			runtime.Gosched()
		}
		if len(l.idle) > 0 {
			l.submit(l.trapFree || may.Has(virtioblk.Flush))
		}
	}
}

func (l *life) submit(flushes bool) {
	r := l.idle[len(l.idle)-1]
	l.idle = l.idle[:len(l.idle)-1]
	units := l.ledger.Sectors() / l.unit
	n := (1 + l.rng.IntN(16/l.unit)) * l.unit
	at := l.rng.IntN(units-n/l.unit+1) * l.unit
	r.Sector, r.Len = uint64(at), n*sector
	k := crashTask{toggles: l.toggles, through: !l.on}
	kind := l.rng.IntN(100)
	switch {
	case kind < 25:
		r.Type, k.mark = virtioblk.TypeIn, l.ledger.Now(at, n)
	case kind < 80:
		r.Type, k.entry = virtioblk.TypeOut, l.ledger.Write(at, r.Data()[:r.Len])
	case kind < 88:
		r.Type, k.entry = virtioblk.TypeWriteZeroes, l.ledger.Zero(at, n)
	case kind < 92:
		r.Type, k.entry = virtioblk.TypeDiscard, l.ledger.Discard(at, n)
	case flushes && l.rng.IntN(3) == 0: // seldom, so that there is much before the first
		r.Type, r.Len, r.Sector = virtioblk.TypeFlush, 0, 0
		k.mark = l.ledger.Now(0, l.ledger.Sectors())
		l.flushed = true
	default:
		r.Type, k.mark = virtioblk.TypeIn, l.ledger.Now(at, n)
	}
	if r.Type == virtioblk.TypeWriteZeroes || r.Type == virtioblk.TypeDiscard {
		g := virtioblk.Range{Sector: uint64(at), NumSectors: uint32(n)}
		if r.Type == virtioblk.TypeWriteZeroes && l.rng.IntN(2) == 0 {
			g.Flags = virtioblk.RangeUnmap
		}
		g.Encode(r.Data())
		r.Len, r.Sector = virtioblk.RangeLen, 0
	}
	l.tasks[r.Tag] = k
	q := l.queues[l.rng.IntN(len(l.queues))]
	require.NoError(l.t, q.Submit(r))
	require.NoError(l.t, q.Kick())
}

// collect takes what is done, and notes what can be counted on from now on.
func (l *life) collect() {
	for _, q := range l.queues {
		done, err := q.Poll(nil)
		require.NoError(l.t, err)
		for _, r := range done {
			require.Equal(l.t, virtioblk.StatusOK, r.Status)
			k := l.tasks[r.Tag]
			l.tasks[r.Tag] = crashTask{}
			l.idle = append(l.idle, r)
			switch r.Type {
			case virtioblk.TypeIn:
				require.NoError(l.t, l.ledger.Read(k.mark, r.Data()[:r.Len]))
				l.seen["read"]++
			case virtioblk.TypeFlush:
				l.ledger.Flushed(k.mark)
				l.seen["flushed"]++
			default:
				stable := l.stable(k)
				l.ledger.Done(k.entry, stable)
				if stable {
					l.seen["stable"]++
				}
			}
		}
	}
}

// stable says whether a write that was just seen to be done must be on the medium
// (virtio 1.4 §5.2.6.2; trap-free also until the first flush).
func (l *life) stable(k crashTask) bool {
	through := k.through && k.toggles == l.toggles
	switch {
	case l.trapFree:
		return through || !l.flushed
	case l.dev.Accepted().Has(virtioblk.ConfigWCE):
		return through
	}
	return l.counted
}

// A driver that turns the cache off counts on it from its next write on, however
// seldom the registers are looked at and however busy the queue is.
func TestTrapFreeCacheTurnedOffCountsAtOnce(t *testing.T) {
	s, rec := recorded(trapFree(setup{polled: true}))
	r := newRig(t, s)
	r.must(virtioblk.TypeFlush, 0, nil)
	w := r.request(sector)
	busy := r.request(sector)
	poll := func() {
		_, err := r.q.Poll(nil)
		require.NoError(t, err)
	}
	for i := range 2000 {
		require.NoError(t, r.dev.WriteDeviceConfig(virtioblk.CfgWriteback, []byte{1}))
		busy.Type, busy.Sector = virtioblk.TypeIn, 0
		require.NoError(t, r.q.Submit(busy))
		require.NoError(t, r.q.Kick())
		for i%2 == 0 && r.q.InFlight() > 0 {
			poll()
		}
		rec.take()
		require.NoError(t, r.dev.WriteDeviceConfig(virtioblk.CfgWriteback, []byte{0}))
		w.Type, w.Sector = virtioblk.TypeOut, 8
		require.NoError(t, r.q.Submit(w))
		require.NoError(t, r.q.Kick())
		for r.q.InFlight() > 0 {
			poll()
		}
		for _, o := range rec.take() {
			require.True(t, o.Op != disk.Write || o.Durable, "round %d", i)
		}
	}
}
