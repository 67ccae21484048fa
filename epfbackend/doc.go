// Package epfbackend is the endpoint function: a virtio-blk device made of a
// disk and a place on a PCIe link.
//
// It joins the parts. A controller (package epc) brings register accesses; the
// register file (package regfile) says what the driver decided; each live
// virtqueue gets one worker, which alone touches its ring (package vring),
// executes requests against the disk (package disk) and raises interrupts.
// A worker waits in one place, its disk engine, for completions and for its
// doorbell.
//
// A controller may not see register accesses: the BAR is memory then, a sampler
// finds out what the driver did, and workers look whether there was a reset
// before they touch host memory (Options.TrapFree).
//
// The package knows no particular controller, and nothing of the command line.
package epfbackend
