// Package uring is a small io_uring: one submission queue, one completion queue,
// and the operations that a disk needs.
//
// A Ring belongs to one goroutine that is locked to its OS thread (the issuer):
// New, every preparation, every submission, Reap and Close happen there. That is
// what the kernel's cheapest modes ask for, and it is why nothing here is locked.
//
// The kernel works on the memory behind a submission until its completion has
// been reaped. The Ring holds addresses, not references: whoever prepares an
// operation keeps its memory alive and in place until then.
//
// The package knows nothing of disks, and it never spins: what has to wait
// sleeps in the kernel, through a system call that the Go scheduler sees.
package uring
