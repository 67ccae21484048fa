package disk

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// plainThreads is the number of system calls that a plain engine has in flight.
const plainThreads = 8

// plainEngine runs everything off-loaded.
type plainEngine struct {
	off      offload
	doorbell bell
	other    bell // see Listen
	depth    int
	inFlight int
	done     []*IO // since the last Wait
	out      []*IO // what Wait returned
}

func newPlainEngine(t *target, depth, doorbell int) (*plainEngine, error) {
	e := &plainEngine{depth: depth, done: make([]*IO, 0, depth), out: make([]*IO, 0, depth)}
	if err := e.off.open(t, depth, plainThreads); err != nil {
		return nil, err
	}
	e.doorbell.listen(doorbell)
	e.other.listen(-1)
	return e, nil
}

func (e *plainEngine) Name() string { return "plain" }

func (e *plainEngine) Start(io *IO) {
	switch {
	case e.inFlight == e.depth:
		io.fail(unix.EBUSY)
		e.done = append(e.done, io)
	case e.off.t.begin(io):
		e.inFlight++
		e.off.start(io)
	default:
		e.done = append(e.done, io)
	}
}

// Listen implements Engine.
func (e *plainEngine) Listen(bell int) { e.other.listen(bell) }

func (e *plainEngine) Wait(block bool) ([]*IO, bool, error) {
	for rung, woken := false, false; ; {
		before := len(e.done)
		e.done = e.off.take(e.done)
		e.inFlight -= len(e.done) - before
		if rung || woken || len(e.done) > 0 || !block {
			e.done, e.out = e.out[:0], e.done
			return e.out, rung, nil
		}
		if err := sleep(e.off.bell.fd, e.doorbell.fd, e.other.fd); err != nil {
			return nil, false, err
		}
		e.off.bell.drain()
		rung, woken = e.doorbell.drain(), e.other.drain()
	}
}

func (e *plainEngine) Ready() bool { return len(e.done) > 0 || e.off.ready.Load() > 0 }

// sleep waits until one of three descriptors is readable; each may be -1.
func sleep(a, b, c int) error {
	fds := [3]unix.PollFd{
		{Fd: int32(a), Events: unix.POLLIN}, {Fd: int32(b), Events: unix.POLLIN}, {Fd: int32(c), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds[:], -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("wait for the disk or the doorbell: %w", err)
		case (fds[0].Revents|fds[1].Revents|fds[2].Revents)&unix.POLLNVAL != 0:
			return fmt.Errorf("wait for the doorbell: %w", unix.EBADF)
		}
		return nil
	}
}

// Pin implements Engine: these system calls look pages up each time.
func (e *plainEngine) Pin(...[]byte) error { return nil }

func (e *plainEngine) Close() error { return e.off.close() }
