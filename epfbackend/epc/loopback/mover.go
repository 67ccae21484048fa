package loopback

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/shm"
)

// ErrLocal reports a part outside of the memory that the mover was made with.
var ErrLocal = errors.New("local memory is not the mover's")

// mover is one queue's share of an engine. It implements epc.Mover.
type mover struct {
	e      *Engine
	memory []byte
	bell   int

	started []*epc.Move // not submitted yet
	out     []*epc.Move // what Completed returned

	// All below belongs to who holds clock.mu.
	queue []*epc.Move // submitted, and no job is free
	free  []*job
	busy  int // jobs that are not
	done  []*epc.Move
	rest  sync.Cond // busy has become 0
}

// job is a move that is being executed.
type job struct {
	mover *mover
	move  *epc.Move
	part  int // the next to be moved, from off on
	off   int
	err   error
}

func (e *Engine) newMover(depth int, memory []byte, bell int) *mover {
	m := &mover{e: e, memory: memory, bell: bell}
	m.rest.L = &e.clock.mu
	jobs := make([]job, depth)
	for i := range jobs {
		jobs[i].mover = m
		m.free = append(m.free, &jobs[i])
	}
	return m
}

func (m *mover) Start(move *epc.Move) {
	move.Err = nil
	m.started = append(m.started, move)
}

func (m *mover) Submit() error {
	if len(m.started) == 0 {
		return nil
	}
	m.e.clock.mu.Lock()
	defer m.e.clock.mu.Unlock()
	m.e.change(len(m.started))
	m.queue = append(m.queue, m.started...)
	m.started = m.started[:0]
	m.feed()
	m.e.dispatch()
	return nil
}

// feed gives free jobs to moves.
func (m *mover) feed() {
	for len(m.queue) > 0 && len(m.free) > 0 {
		j := m.free[len(m.free)-1]
		m.free = m.free[:len(m.free)-1]
		*j = job{mover: m, move: m.queue[0]}
		m.queue = slices.Delete(m.queue, 0, 1)
		m.busy++
		m.e.waiting = append(m.e.waiting, j)
	}
}

// end is called when a job has.
func (m *mover) end(j *job) {
	j.move.Err = j.err
	m.done = append(m.done, j.move)
	j.move = nil
	m.busy--
	m.free = append(m.free, j)
	m.feed()
	if len(m.done) == 1 {
		signal(m.bell)
	}
	if m.busy == 0 {
		m.rest.Broadcast()
	}
}

func (m *mover) Completed() []*epc.Move {
	m.e.clock.mu.Lock()
	defer m.e.clock.mu.Unlock()
	m.done, m.out = m.out[:0], m.done
	return m.out
}

// Close forgets what waits for a channel.
func (m *mover) Close() error {
	c := m.e.clock
	c.mu.Lock()
	m.e.change(-len(m.queue))
	m.queue = nil
	m.e.waiting = slices.DeleteFunc(m.e.waiting, func(j *job) bool {
		if j.mover != m {
			return false
		}
		m.busy--
		m.e.change(-1)
		return true
	})
	for c.runs() && m.busy > 0 {
		m.rest.Wait()
	}
	for m.busy > 0 {
		c.next()
	}
	c.mu.Unlock()
	return nil
}

// cut returns the job's next segment; one without memory is the end.
func (j *job) cut(segment, boundary int) (addr uint64, local []byte) {
	for j.err == nil && j.part < len(j.move.Parts) {
		p := &j.move.Parts[j.part]
		if j.off == len(p.Local) {
			j.part, j.off = j.part+1, 0
			continue
		}
		if j.off == 0 {
			if _, ok := shm.Offset(j.mover.memory, p.Local); !ok {
				j.err = fmt.Errorf("part %d of %d: %w", j.part, len(j.move.Parts), ErrLocal)
				break
			}
		}
		addr = p.Addr + uint64(j.off)
		n := min(len(p.Local)-j.off, segment, boundary-int(addr%uint64(boundary)))
		local = p.Local[j.off : j.off+n]
		j.off += n
		return addr, local
	}
	return 0, nil
}
