package disk

import (
	"github.com/vblk-ep/vblk-ep/internal/blkio"
	"github.com/vblk-ep/vblk-ep/internal/shm"
	"golang.org/x/sys/unix"
)

// nullEngine does everything at once: reads are zeroes, the rest is nothing. No
// system call is made except to sleep.
type nullEngine struct {
	t        *target
	doorbell bell
	other    bell  // see Listen
	done     []*IO // since the last Wait
	out      []*IO // what Wait returned
	zeroed   int   // of done
	zero     func() error
}

func newNullEngine(t *target, depth, doorbell int) *nullEngine {
	e := &nullEngine{t: t, done: make([]*IO, 0, depth), out: make([]*IO, 0, depth)}
	e.doorbell.listen(doorbell)
	e.other.listen(-1)
	e.zero = e.zeroReads
	return e
}

func (e *nullEngine) Name() string { return "null" }

func (e *nullEngine) Start(io *IO) {
	e.t.begin(io)
	e.done = append(e.done, io)
}

func (e *nullEngine) Wait(block bool) ([]*IO, bool, error) {
	for e.zeroed = 0; shm.Guard(e.zero) != nil; e.zeroed++ {
		e.done[e.zeroed].Err = unix.EFAULT // the memory is gone; go on with the next
	}
	rung, woken := false, false
	for block && len(e.done) == 0 && !rung && !woken {
		if err := sleep(-1, e.doorbell.fd, e.other.fd); err != nil {
			return nil, false, err
		}
		rung, woken = e.doorbell.drain(), e.other.drain()
	}
	e.done, e.out = e.out[:0], e.done
	return e.out, rung, nil
}

func (e *nullEngine) Ready() bool { return len(e.done) > 0 }

func (e *nullEngine) zeroReads() error {
	for ; e.zeroed < len(e.done); e.zeroed++ {
		if io := e.done[e.zeroed]; io.Op == Read && io.Err == nil {
			blkio.Clear(io.Iov)
		}
	}
	return nil
}

// Listen implements Engine.
func (e *nullEngine) Listen(bell int) { e.other.listen(bell) }

// Pin implements Engine: no disk is to be told.
func (e *nullEngine) Pin(...[]byte) error { return nil }

func (e *nullEngine) Close() error { return nil }
