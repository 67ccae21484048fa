package shm

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// ErrGone reports that memory behind a mapping vanished while it was used: the
// file was truncated under it.
var ErrGone = errors.New("shared memory is gone")

// Guard runs f and turns a memory fault in it into ErrGone. Other panics pass.
// It is meant around a batch, not around each access: it costs a defer and two
// flag writes. Faults on other goroutines that f starts are not covered.
func Guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		if fault, ok := r.(interface{ Addr() uintptr }); ok {
			err = fmt.Errorf("%w: fault at %#x", ErrGone, fault.Addr())
			return
		}
		panic(r)
	}()
	return f()
}
