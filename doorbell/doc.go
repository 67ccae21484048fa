// Package doorbell is how a host's notification reaches the worker that owns a
// virtqueue.
//
// Whatever rings it, a doorbell ends in an eventfd, because a worker waits for
// everything in one place. A Source hides where the ring came from: a register
// write that was trapped (Trapped), an interrupt for which the kernel signals the
// eventfd of a Trapped, or memory that is looked at now and then (Polled), at an
// adaptive Pace. A doorbell carries no data:
// the ring's own index says what is new, so rings may be merged, and a spurious
// one is harmless.
package doorbell
