package disktest

import (
	"math/rand/v2"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/internal/blkio"
)

// volatileEngine moves its operations on whenever it is looked at.
type volatileEngine struct {
	v        *Volatile
	rng      *rand.Rand
	doorbell int
	other    int // see Listen; -1: none
	active   []*active
	done     []*disk.IO
	out      []*disk.IO
}

// active is an operation between its start and its end.
type active struct {
	io    *disk.IO
	begun int64
	left  []int // blocks that it has not touched yet
}

func (e *volatileEngine) Name() string { return "volatile" }

func (e *volatileEngine) Start(io *disk.IO) {
	e.v.mu.Lock()
	defer e.v.mu.Unlock()
	if io.Err = e.v.check(io); io.Err != nil {
		e.done = append(e.done, io)
		return
	}
	a := &active{io: io}
	e.active = append(e.active, a)
	if !e.v.step() {
		return
	}
	a.begun = e.v.now
	if io.Op != disk.Flush {
		size := int64(e.v.info.LogicalBlock)
		for b := io.Offset / size; b < (io.Offset+io.Length)/size; b++ {
			a.left = append(a.left, int(b))
		}
		e.rng.Shuffle(len(a.left), func(i, j int) { a.left[i], a.left[j] = a.left[j], a.left[i] })
	}
}

// check is as strict as direct access is.
func (v *Volatile) check(io *disk.IO) error {
	if io.Op == disk.Flush {
		return nil
	}
	size := int64(v.info.LogicalBlock)
	switch {
	case io.Offset < 0 || io.Length < 0 || io.Offset > v.info.Size || io.Length > v.info.Size-io.Offset:
		return unix.EIO
	case (io.Offset|io.Length)%size != 0:
		return unix.EINVAL
	case io.Op == disk.Read || io.Op == disk.Write:
		if total, _, _ := blkio.Shape(io.Iov); total != io.Length {
			return unix.EINVAL
		}
	}
	return nil
}

// Wait moves operations on, at random, until it has something to return.
func (e *volatileEngine) Wait(block bool) (done []*disk.IO, rung bool, err error) {
	for {
		e.move()
		alive := !e.v.Dead()
		rung = drained(e.doorbell) || rung
		woken := drained(e.other)
		if rung || woken || len(e.done) > 0 || !block {
			break
		}
		if alive && len(e.active) > 0 {
			continue
		}
		fds := []unix.PollFd{{Fd: int32(e.doorbell), Events: unix.POLLIN}, {Fd: int32(e.other), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return nil, false, err
		}
	}
	e.done, e.out = e.out[:0], e.done
	return e.out, rung, nil
}

// Listen implements disk.Engine.
func (e *volatileEngine) Listen(bell int) { e.other = bell }

// Pin implements disk.Engine.
func (e *volatileEngine) Pin(...[]byte) error { return nil }

// Ready implements disk.Engine: operations move on whenever they are looked at.
func (e *volatileEngine) Ready() bool { return len(e.done)+len(e.active) > 0 }

func drained(bell int) bool {
	fds := []unix.PollFd{{Fd: int32(bell), Events: unix.POLLIN}}
	if n, _ := unix.Poll(fds, 0); n < 1 {
		return false
	}
	var count [8]byte
	n, _ := unix.Read(bell, count[:])
	return n == len(count)
}

// move gives each operation a few steps, or none.
func (e *volatileEngine) move() {
	e.v.mu.Lock()
	defer e.v.mu.Unlock()
	for _, a := range slices.Clone(e.active) {
		if e.v.ended {
			a.io.Err = unix.EIO
			e.end(a)
			continue
		}
		for steps := e.rng.IntN(4); steps > 0 && e.v.image == nil; steps-- {
			if !e.v.step() {
				break
			}
			if len(a.left) == 0 {
				e.v.complete(a)
				e.end(a)
				break
			}
			e.v.touch(a, a.left[0])
			a.left = a.left[1:]
		}
	}
}

func (e *volatileEngine) end(a *active) {
	e.active = slices.DeleteFunc(e.active, func(o *active) bool { return o == a })
	e.done = append(e.done, a.io)
}

// touch moves one block.
func (v *Volatile) touch(a *active, i int) {
	size := int(v.info.LogicalBlock)
	b, at := &v.blocks[i], int64(i*size)-a.io.Offset
	if a.io.Op == disk.Read {
		blkio.Scatter(a.io.Iov, at, b.latest())
		return
	}
	data := make([]byte, size)
	switch a.io.Op {
	case disk.Write:
		blkio.Gather(data, a.io.Iov, at)
	case disk.Discard, disk.SecureErase: // what is left may be anything
		for k := range data {
			data[k] = byte(v.rng.Uint32())
		}
	}
	b.versions = append(b.versions, version{data: data, by: a.begun})
}

// complete keeps the promises of an operation that is done.
func (v *Volatile) complete(a *active) {
	size := int64(v.info.LogicalBlock)
	switch a.io.Op {
	case disk.Read:
		return
	case disk.Flush:
		v.flush(a.begun)
		return
	}
	for i := a.io.Offset / size; i < (a.io.Offset+a.io.Length)/size; i++ {
		b := &v.blocks[i]
		n := slices.IndexFunc(b.versions, func(w version) bool { return w.by == a.begun })
		if n < 0 {
			continue // written out by a later one
		}
		b.versions[n].done = v.now
		if a.io.Durable {
			b.writeOut(n)
		}
	}
}

// Close waits for what is in flight, as long as there is power.
func (e *volatileEngine) Close() error {
	for len(e.active) > 0 && !e.v.Dead() {
		e.move()
	}
	e.active = nil
	return nil
}
