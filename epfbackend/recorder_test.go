package epfbackend_test

import (
	"slices"
	"sync"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
)

// recorder is a disk that notes what it is asked to do, and may claim to be able
// to do what the real one behind it cannot.
type recorder struct {
	disk.Store
	change func(*disk.Info) // what it claims
	does   []disk.Op        // which it claims to have done, without the real disk

	mu  sync.Mutex
	ops []op
}

type op struct {
	Op            disk.Op
	Off, Len      int64
	Durable       bool
	Unmap         bool
	StoreFlushing bool // by Store.Flush, not by an engine
}

func (r *recorder) Info() disk.Info {
	i := r.Store.Info()
	if r.change != nil {
		r.change(&i)
	}
	return i
}

func (r *recorder) note(o op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
}

// take returns what was done since it was last called.
func (r *recorder) take() []op {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops := r.ops
	r.ops = nil
	return ops
}

func (r *recorder) Flush() error {
	r.note(op{Op: disk.Flush, StoreFlushing: true})
	return r.Store.Flush()
}

func (r *recorder) NewEngine(kind disk.EngineKind, depth, doorbell int) (disk.Engine, error) {
	e, err := r.Store.NewEngine(kind, depth, doorbell)
	if err != nil {
		return nil, err
	}
	return &recorderEngine{Engine: e, r: r}, nil
}

type recorderEngine struct {
	disk.Engine
	r    *recorder
	done []*disk.IO
}

func (e *recorderEngine) Start(io *disk.IO) {
	e.r.note(op{Op: io.Op, Off: io.Offset, Len: io.Length, Durable: io.Durable, Unmap: io.Unmap})
	if slices.Contains(e.r.does, io.Op) {
		io.Err = nil
		e.done = append(e.done, io)
		return
	}
	e.Engine.Start(io)
}

func (e *recorderEngine) Ready() bool { return len(e.done) > 0 || e.Engine.Ready() }

func (e *recorderEngine) Wait(block bool) ([]*disk.IO, bool, error) {
	done, rung, err := e.Engine.Wait(block && len(e.done) == 0)
	done = append(e.done, done...)
	e.done = nil
	return done, rung, err
}
