package epc

import "context"

// Lasting is what a Function can be, too: one that another process can go on with, so
// that the host's driver notices a pause and nothing else. It notes all that this takes
// in the record of a Controller that is Recording, as long as it is attached.
type Lasting interface {
	Function

	// Suspend is called instead of Detach. All that the driver has asked for is done
	// and published, and flushed; nothing is reset. After an error the function is
	// still attached, and good for Detach only.
	Suspend(ctx context.Context) error

	// Continue is called instead of Attach, on the controller of a function with the
	// same Description that was suspended, or whose process has died at any moment.
	// Nothing that one had started may be under way any more, at the disk or in the
	// host's memory. What it had not published is executed again. gone says that the
	// host's end may have gone meanwhile: then nobody is served but who has set up the
	// device since. After an error nothing was touched, and Attach can follow.
	Continue(c Controller, gone bool) error

	// CanContinue returns what Continue would fail with, and touches nothing.
	CanContinue(c Controller) error
}

// Recording is a Controller with memory for a function that outlives the process, as the
// memory of the BARs does.
type Recording interface {
	Controller

	// Record returns that memory, which begins at a multiple of 8; nil if there is
	// none. It is the function's until Detach or Suspend returns, and holds what the
	// last one left there, or zeroes.
	Record() []byte
}
