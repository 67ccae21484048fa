package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Progress is how far a run has come.
type Progress struct {
	Elapsed   time.Duration // since the load began
	IOPS      float64       // since the last report
	Bytes     float64       // a second, since the last report
	Verifying bool          // the load is over, and what it wrote is read back
}

// run is one job on its way.
type run struct {
	job    *Job
	target *Target
	phase  atomic.Int32
	lanes  []*lane
	begin  time.Time
}

// snapshot is what was done until a moment.
type snapshot struct {
	at            time.Duration // since the beginning
	reads, writes uint64
	usage         usage
}

// Run executes the job on the target, and reports progress each second, where it
// is wanted. When ctx ends, the run ends early, and the result is that of the
// time until then, with the error of ctx. A job can be run after another one.
func Run(ctx context.Context, t *Target, j Job, progress func(Progress)) (*Result, error) {
	if err := j.Check(); err != nil {
		return nil, err
	}
	if j.Writes() && t.ReadOnly {
		return nil, fmt.Errorf("%w: the disk is read-only: choose a workload that only reads", ErrTarget)
	}
	if j.Depth != t.Depth || j.Block != t.Block {
		return nil, fmt.Errorf("%w: the target was made for other requests", ErrJob)
	}
	spans, err := j.spans(t.Capacity, t.Queues)
	if err != nil {
		return nil, err
	}
	if j.Writes() {
		if err := t.flush(); err != nil {
			return nil, err
		}
	}
	r := &run{job: &j, target: t, begin: time.Now()}
	for i, q := range t.queues {
		l := newLane(i, r.job, q, t.requests[i], spans[i])
		l.phase, l.base, l.hiPri = &r.phase, r.begin, t.HiPri
		r.lanes = append(r.lanes, l)
	}
	return r.execute(ctx, progress)
}

func (r *run) execute(ctx context.Context, progress func(Progress)) (*Result, error) {
	var started sync.WaitGroup
	started.Add(len(r.lanes))
	group, failed := errgroup.WithContext(context.Background())
	for _, l := range r.lanes {
		group.Go(func() error { return l.run(started.Done) })
	}
	started.Wait()
	ended := make(chan struct{})
	var laneErr error
	go func() { laneErr = group.Wait(); close(ended) }()

	from, to, err := r.measure(ctx, failed, progress)
	r.phase.Store(stopping)
	r.follow(ended, progress)
	if laneErr != nil {
		return nil, laneErr
	}
	if err != nil {
		return nil, err
	}
	return r.result(from, to), ctx.Err()
}

// measure lets the load run for its time, and says what was done until the
// beginning and the end of what is measured.
func (r *run) measure(ctx, failed context.Context, progress func(Progress)) (from, to snapshot, err error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	step := time.NewTimer(r.job.RampTime)
	defer step.Stop()
	last := r.look()
	for {
		select {
		case <-tick.C:
			last = r.tell(last, false, progress)
		case <-failed.Done():
			return from, to, nil // its error is told elsewhere
		case <-ctx.Done():
			if r.phase.Load() != measuring {
				return from, to, ctx.Err()
			}
			to, err = r.take()
			return from, to, err
		case <-step.C:
			if r.phase.Load() == measuring {
				to, err = r.take()
				return from, to, err
			}
			if from, err = r.take(); err != nil {
				return from, to, err
			}
			r.phase.Store(measuring)
			step.Reset(r.job.Runtime)
		}
	}
}

// follow reports progress until the lanes have ended.
func (r *run) follow(ended <-chan struct{}, progress func(Progress)) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := r.look()
	for {
		select {
		case <-tick.C:
			last = r.tell(last, true, progress)
		case <-ended:
			return
		}
	}
}

func (r *run) look() (s snapshot) {
	s.at = time.Since(r.begin)
	for _, l := range r.lanes {
		s.reads += l.reads.Load()
		s.writes += l.writes.Load()
	}
	return s
}

func (r *run) take() (s snapshot, err error) {
	s = r.look()
	s.usage, err = usageOf(r.target.Server, r.lanes)
	return s, err
}

func (r *run) tell(last snapshot, verifying bool, progress func(Progress)) snapshot {
	now := r.look()
	if progress != nil {
		iops := float64(now.reads+now.writes-last.reads-last.writes) / (now.at - last.at).Seconds()
		progress(Progress{Elapsed: now.at, IOPS: iops, Bytes: iops * float64(r.job.Block), Verifying: verifying && r.job.Verify})
	}
	return now
}
