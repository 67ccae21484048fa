package epc

import "context"

// Lasting is what a Function can be, too: one that can be left to another process,
// which serves the host's driver on. It needs a Controller that keeps the memory of
// BARs meanwhile, and a few bytes.
type Lasting interface {
	Function

	// Suspend is called instead of Detach. All that the driver has asked for is done
	// and published, and flushed; nothing is reset. It returns what Continue needs.
	// After an error the function is still attached, and good for Detach only.
	Suspend(ctx context.Context) (state []byte, err error)

	// Continue is called instead of Attach, with what Suspend of a function with
	// the same Description has returned.
	Continue(c Controller, state []byte) error
}
