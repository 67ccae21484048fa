package epfbackend_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/loopback"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// die ends the function as the death of its process does, and returns what lets another
// one go on.
func (r *rig) die() (goOn func()) {
	r.t.Helper()
	return r.successor(r.slot.Kill(r.fn.Die))
}

// again returns how many requests were executed once more so far.
func (r *rig) again() (n int) {
	r.t.Helper()
	for _, m := range regexp.MustCompile(`ring taken over.* again=(\d+)`).FindAllStringSubmatch(r.log.String(), -1) {
		k, err := strconv.Atoi(m[1])
		require.NoError(r.t, err)
		n += k
	}
	return n
}

// want is what a request in flight is to come to.
type want struct {
	write bool
	data  []byte
}

// The server dies in the middle of whatever the driver asks for, and another one goes
// on, again and again. Each request comes to its end, once, and does what it is to do.
func TestDeathUnderLoad(t *testing.T) {
	for name, s := range lasting() {
		for _, dma := range []bool{false, true} {
			for _, indirect := range []int{0, 8} {
				t.Run(fmt.Sprintf("%s dma=%t indirect=%d", name, dma, indirect), func(t *testing.T) {
					if dma {
						link := loopback.Gen3x2
						s.link = &link
					}
					s.queue.Size, s.queue.Indirect = 16, indirect
					underLoad(t, newLasting(t, s))
				})
			}
		}
	}
}

func underLoad(t *testing.T, r *rig) {
	const count, size, lives = 12, 16 << 10, 60
	rng := rand.New(rand.NewPCG(1, 2))
	var idle []*rc.Request
	for i := range count {
		q := r.request(size)
		q.Tag = i
		idle = append(idle, q)
	}
	shadow := make([]byte, count*size) // what is on the disk, each part one request's
	wants := make([]want, count)
	done := 0
	collect := func() {
		list, err := r.q.Poll(nil)
		require.NoError(t, err)
		for _, q := range list {
			require.Equal(t, virtioblk.StatusOK, q.Status)
			w := wants[q.Tag]
			if !w.write {
				require.True(t, bytes.Equal(w.data, q.Data()[:q.Len]), "what was read")
			}
			idle = append(idle, q)
			done++
		}
	}
	submit := func() {
		q := idle[len(idle)-1]
		part := shadow[q.Tag*size:][:size]
		q.Len = sector * (1 + rng.IntN(size/sector))
		q.Sector, q.Type = uint64(q.Tag*size/sector), virtioblk.TypeIn
		w := want{write: rng.IntN(2) == 0}
		for i := range q.Data() {
			q.Data()[i] = byte(rng.Uint32())
		}
		if w.write {
			q.Type = virtioblk.TypeOut
		}
		if err := r.q.Submit(q); err != nil {
			require.ErrorIs(t, err, vringtest.ErrNoRoom)
			return
		}
		if w.write {
			copy(part, q.Data()[:q.Len])
		}
		w.data = bytes.Clone(part[:q.Len])
		wants[q.Tag] = w
		idle = idle[:len(idle)-1]
		require.NoError(t, r.q.Kick())
	}
	for range lives {
		for range 1 + rng.IntN(20) {
			if len(idle) > 0 && rng.IntN(3) > 0 {
				submit()
			} else {
				collect()
			}
		}
		time.Sleep(time.Duration(rng.IntN(200)) * time.Microsecond)
		goOn := r.die()
		if rng.IntN(2) == 0 {
			collect()
		}
		if len(idle) > 0 {
			submit()
		}
		goOn()
	}
	for r.q.InFlight() > 0 {
		came, _, err := r.dev.AwaitInterrupt(1, patience)
		require.NoError(t, err)
		require.True(t, came, "the interrupt of what was done last")
		collect()
	}
	require.True(t, bytes.Equal(shadow, r.onDisk(0, len(shadow))))
	again := r.again()
	t.Logf("%d requests, %d of them again", done, again)
	require.Positive(t, again, "the test does not show what it is for")
	require.NotContains(t, r.log.String(), "level=ERROR")
	r.revive()
}

// A function is not given to who is another one, or cannot know when the requests of the
// one before have ended.
func TestNotEveryoneGoesOn(t *testing.T) {
	for name, edit := range map[string]func(o *epfbackend.Options, i *disk.Info){
		"another disk":    func(o *epfbackend.Options, _ *disk.Info) { o.Serial = "other" },
		"a larger queue":  func(o *epfbackend.Options, _ *disk.Info) { o.QueueSize = 512 },
		"other features":  func(_ *epfbackend.Options, i *disk.Info) { i.Discard.Supported = false },
		"no claim":        func(_ *epfbackend.Options, i *disk.Info) { i.Exclusive = false },
		"too large a one": func(o *epfbackend.Options, _ *disk.Info) { o.QueueSize = 8192 },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, lasting()["packed"])
			r.alive()
			require.NoError(t, r.slot.Kill(r.fn.Die))
			o, i := r.options, r.store.Info()
			edit(&o, &i)
			next, err := epfbackend.New(told{r.store, i}, o)
			require.NoError(t, err)
			require.Error(t, r.slot.Continue(next))
			require.NoError(t, next.Close())
			r.successor(nil)()
			r.alive()
		})
	}
}

// told is a store that says something else of itself.
type told struct {
	disk.Store
	info disk.Info
}

func (s told) Info() disk.Info { return s.info }

// A host that was reset while nobody served it finds its memory untouched, and a driver
// that has set up the device since is served.
func TestHostHasGone(t *testing.T) {
	for name, s := range lastingOne() {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, s)
			r.alive()
			goOn := func() { r.succeed(r.slot.ContinueGone) }
			q := r.request(sector)
			require.NoError(t, r.slot.Kill(r.fn.Die))
			require.NoError(t, r.q.Submit(q))
			require.NoError(t, r.q.Kick())
			goOn()
			st, err := r.dev.Status()
			require.NoError(t, err)
			require.Zero(t, st)
			time.Sleep(3 * epfbackend.ReactionTime)
			require.False(t, r.fn.Active())
			require.Equal(t, 1, r.q.InFlight(), "what the last driver asked for is not done")
			r.revive()

			require.NoError(t, r.slot.Kill(r.fn.Die))
			r.start()
			r.ask(goOn)

			require.NoError(t, r.slot.Kill(r.fn.Die))
			require.NoError(t, r.dev.Reset())
			goOn()
			r.revive()
		})
	}
}

// A function whose rings are too large for the record works, and cannot be left.
func TestTooLargeToBeLeft(t *testing.T) {
	s := lasting()["packed"]
	s.options.QueueSize = 8192
	r := newRig(t, s)
	r.alive()
	require.Error(t, r.slot.Suspend())
	require.Contains(t, r.log.String(), "nobody can go on with this function")
}

// Whatever stands in the record, who goes on with it does no harm to itself, and what the
// driver sets up anew is served.
func FuzzRecord(f *testing.F) {
	f.Add(false, uint16(0x04), []byte{1})
	f.Add(true, uint16(0x1c), []byte{2})
	f.Add(true, uint16(0x30), []byte{8, 0, 0, 0})
	f.Fuzz(func(t *testing.T, packed bool, off uint16, data []byte) {
		name := "split"
		if packed {
			name = "packed"
		}
		r := newRig(t, lasting()[name])
		r.alive()
		require.NoError(t, r.slot.Kill(r.fn.Die))
		if int(off) < len(r.slot.Record()) {
			copy(r.slot.Record()[off:], data)
		}
		r.succeed(func(next epc.Function) error {
			if r.slot.Continue(next) == nil {
				return nil
			}
			return r.slot.Attach(next)
		})
		r.revive()
	})
}
