// Package vring is the device side of one virtqueue (virtio 1.4 §2.6 on): it
// fetches descriptor chains that the driver made available, gives back used
// ones, and decides about notifications both ways.
//
// In the line of a request it stands between the doorbell and the endpoint
// function, and again between the function and the interrupt. It knows host
// memory only through Memory, and rings exist behind Queue, so that the worker of
// a queue need not know their layout. Split and Packed are the two layouts;
// FormatEvidence tells one from the other where nobody says.
//
// A ring lies in memory that the driver can change at any moment. Each thing in
// it is read once and validated after it was copied; whatever it says, the work
// done for one call is bounded by the queue size and Config.MaxChain.
//
// The package never touches the buffers that a chain describes, starts no
// goroutine, sends no interrupt, waits for nothing, and has no locks: a queue
// belongs to one goroutine.
package vring
