package epfbackend

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// checkCPUs says which processor of a list this process may not run on, if any.
func checkCPUs(cpus []int) error {
	var may unix.CPUSet
	if len(cpus) == 0 {
		return nil
	}
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return fmt.Errorf("%w: cpus: %w", ErrOption, err)
	}
	for _, n := range cpus {
		if n < 0 || !may.IsSet(n) {
			return fmt.Errorf("%w: cpus: processor %d is not there, or not for this process: leave it out", ErrOption, n)
		}
	}
	return nil
}

// pin keeps the worker's thread on the processor that is meant for it, if any. A
// processor that has gone meanwhile is not worth more than a warning.
func (w *worker) pin() {
	cpus := w.f.opts.CPUs
	if len(cpus) == 0 {
		return
	}
	var set unix.CPUSet
	n := cpus[w.index%len(cpus)]
	set.Set(n)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		w.log.Warn("not pinned to its processor", "processor", n, "err", err)
	}
}
