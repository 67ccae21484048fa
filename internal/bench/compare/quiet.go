package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"time"

	"github.com/prometheus/procfs"
)

// watch tells how much of the machine others use: processes that are not ours, and
// what the hypervisor keeps back. The kernel's own threads do not count, because they
// work for the contenders, too.
type watch struct {
	at    time.Time
	used  map[int]float64 // by process: seconds, with what its ended children used
	steal float64         // seconds
}

func startWatch() (w watch, err error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return w, err
	}
	stat, err := fs.Stat()
	if err != nil {
		return w, err
	}
	all, err := fs.AllProcs()
	if err != nil {
		return w, err
	}
	const kernel, ticks = 2, 100 // the parent of the kernel's threads; USER_HZ
	w = watch{at: time.Now(), used: make(map[int]float64), steal: stat.CPUTotal.Steal}
	for _, p := range all {
		s, err := p.Stat()
		if err != nil || s.PID == kernel || s.PPID == kernel || s.PID == os.Getpid() || s.PPID == os.Getpid() {
			continue // gone, or none of the others
		}
		w.used[s.PID] = float64(s.UTime+s.STime) / ticks
		w.used[s.PID] += float64(s.CUTime+s.CSTime) / ticks
	}
	return w, nil
}

// others returns what others have used since then, in percent of the machine.
func (w watch) others() (percent float64, err error) {
	now, err := startWatch()
	if err != nil {
		return 0, err
	}
	used := now.steal - w.steal
	for pid, seconds := range now.used {
		used += max(seconds-w.used[pid], 0)
	}
	return 100 * used / now.at.Sub(w.at).Seconds() / float64(runtime.NumCPU()), nil
}

// quiet bounds how noisy a turn may be.
type quiet struct {
	most     float64       // percent of the machine that others may use
	patience time.Duration // for turns that are repeated, all together
}

// tries bounds how often one turn is repeated.
const tries = 10

// take is a turn that measured something while others left the machine alone, or the
// quietest of several.
func (q *quiet) take(ctx context.Context, c contender, w work) (best sample, err error) {
	for n := range tries {
		before, err := startWatch()
		if err != nil {
			return best, err
		}
		s, err := c.turn(ctx, w)
		if err != nil {
			return best, err
		}
		if s.Others, err = before.others(); err != nil {
			return best, err
		}
		if s.IOPS > 0 && (best.IOPS == 0 || s.Others < best.Others) {
			best = s
		}
		if best.IOPS > 0 && (best.Others <= q.most || q.patience <= 0) {
			return best, nil
		}
		if n > 0 {
			q.patience -= time.Since(before.at)
		}
	}
	if best.IOPS == 0 {
		return best, errors.New("no request was completed: choose a longer runtime")
	}
	return best, nil
}
