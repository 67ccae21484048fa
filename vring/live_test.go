package vring_test

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/vblk-ep/vblk-ep/vring"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

// signal is a doorbell or an interrupt: several may become one, none is lost.
type signal chan struct{}

func (s signal) raise() {
	select {
	case s <- struct{}{}:
	default:
	}
}

func (s signal) wait(who string) error {
	select {
	case <-s:
		return nil
	case <-time.After(20 * time.Second):
		return fmt.Errorf("%s was never woken: a notification was lost", who)
	}
}

// TestNoLostNotifications runs driver and device at the same time. Each sleeps
// when it finds nothing, and only a notification wakes it. Each chain carries a
// number that the device answers, so that what is seen in the ring before its
// content is noticed as well.
func TestNoLostNotifications(t *testing.T) {
	eachFormat(t, func(t *testing.T, packed bool) {
		for _, size := range []int{1, 4, 128} {
			for bits := range 4 {
				event, transfers := bits&2 != 0, bits&1 != 0
				cfg := vringtest.Config{Packed: packed, Size: size, EventIdx: event, Indirect: 2}
				if !packed {
					cfg.Start = 0xff00 // a packed ring wraps without help
				}
				t.Run(fmt.Sprintf("size %d/event %v/transfers %v", size, event, transfers), func(t *testing.T) {
					r := newRig(t, cfg, transfers)
					data, err := r.mem.Alloc(16*size, 16)
					require.NoError(t, err)
					l := &live{r, data, 10000, make(signal, 1), make(signal, 1)}
					var g errgroup.Group
					g.Go(l.driver)
					g.Go(l.device)
					require.NoError(t, g.Wait())
				})
			}
		}
	})
}

type live struct {
	*rig
	data           uint64 // 16 bytes per chain: question, answer
	total          int
	doorbell, intr signal
}

func (l *live) driver() error {
	size := l.drv.Queue().Size
	slot := make([]int, size) // per head
	free := make([]int, size)
	for i := range free {
		free[i] = i
	}
	for sent, done := 0, 0; done < l.total; {
		l.drv.DisableInterrupts()
		for sent < l.total && l.drv.Free() > 0 && len(free) > 0 {
			i := free[len(free)-1]
			addr := l.data + uint64(16*i)
			binary.LittleEndian.PutUint64(l.mem.Bytes(addr, 8), uint64(sent))
			head, err := l.drv.AddIndirect(segs(seg(addr, 8)), segs(seg(addr+8, 8)))
			if err != nil {
				return err
			}
			slot[head], free = i, free[:len(free)-1]
			if sent++; sent%3 == 0 && l.drv.Kick() {
				l.doorbell.raise()
			}
		}
		if l.drv.Kick() {
			l.doorbell.raise()
		}
		before := done
		for {
			u, ok, err := l.drv.Collect()
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			i := slot[u.Head]
			b := l.mem.Bytes(l.data+uint64(16*i), 16)
			if q, a := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:]); a != q+1 {
				return fmt.Errorf("chain %d: answer %d to %d", u.Head, a, q)
			}
			free = append(free, i)
			done++
		}
		if done == before && !l.drv.EnableInterrupts() {
			if err := l.intr.wait("the driver"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *live) device() error {
	var c vring.Chain
	for done := 0; done < l.total; {
		ok, err := l.q.Next(&c)
		if err != nil {
			return err
		}
		if ok {
			q := l.mem.Bytes(c.Readable[0].Addr, 8)
			a := l.mem.Bytes(c.Writable[0].Addr, 8)
			binary.LittleEndian.PutUint64(a, binary.LittleEndian.Uint64(q)+1)
			l.q.Push(&c, 8)
			if done++; done%5 != 0 {
				continue
			}
		}
		interrupt, err := l.q.Publish()
		if err != nil {
			return err
		}
		if interrupt {
			l.intr.raise()
		}
		if ok {
			continue
		}
		more, err := l.q.EnableNotifications()
		if err != nil {
			return err
		}
		if !more {
			if err := l.doorbell.wait("the device"); err != nil {
				return err
			}
		}
		if err := l.q.DisableNotifications(); err != nil {
			return err
		}
	}
	interrupt, err := l.q.Publish()
	if interrupt {
		l.intr.raise()
	}
	return err
}
