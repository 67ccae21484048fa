package epc

import "context"

// Function is a PCI function as its controller sees it.
//
// ReadBAR, WriteBAR, Attach, Pause, Resume, Reset and Detach are called by the
// controller, one at a time.
type Function interface {
	// Describe says what the host finds in configuration space. The answer
	// never changes.
	Describe() Description

	// ReadBAR and WriteBAR are the host's trapped accesses, in the order of
	// their arrival. The range lies inside the BAR, and nothing else is
	// promised: any length, any alignment. They never wait for the disk.
	ReadBAR(bar int, off uint64, p []byte)
	WriteBAR(bar int, off uint64, p []byte)

	// Attach gives the function its controller, when a host has come. It is
	// valid until Detach returns.
	Attach(c Controller)

	// Pause stops all use of host memory, so that the map may change. When it
	// returns nil nothing is in flight and nothing starts before Resume. When
	// ctx ends first it returns an error: what is in flight may still touch
	// the memory it was given, which must then stay mapped until a later Pause
	// or Detach has succeeded.
	Pause(ctx context.Context) error

	// Resume ends a Pause, also one that failed. Host memory may have changed.
	Resume()

	// Reset is a function-level, bus or slot reset. It returns once the
	// function is in its reset state and uses no host memory, or with an error
	// when ctx ends first (the reset then completes later).
	Reset(ctx context.Context) error

	// HostGone is Reset after the host's end had gone, where another may have come by now:
	// see Late. What that has written to the memory of BARs stays.
	HostGone(ctx context.Context) error

	// Detach ends the attachment: a Reset without a time limit, after which
	// everything the host wrote has been flushed to the disk.
	Detach() error
}

// Controller is what a function can do to its host. Its methods may be called
// from any goroutine between Attach and the end of Detach.
type Controller interface {
	// Memory is the host's memory by bus address.
	Memory() *Memory

	// BARMemory is the memory behind the areas of a BAR that are plain memory,
	// from the start of the BAR on; nil for a BAR without any. The host may read
	// and write it at any moment.
	BARMemory(bar int) []byte

	// MSIXEnabled says whether the host has turned MSI-X on. While it is off,
	// interrupts go by INTx.
	MSIXEnabled() bool

	// RaiseMSIX signals one MSI-X vector. A vector the host did not set up is
	// silently dropped, as on the bus.
	RaiseMSIX(vector uint16) error

	// SetINTx drives the level of the function's interrupt pin.
	SetINTx(asserted bool) error
}
