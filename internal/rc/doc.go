// Package rc is the host side of a link: what a root complex, an operating
// system's PCI code and a virtio-blk driver do, as far as it takes to use one
// function (virtio 1.4 §3.1, §4.1, §5.2).
//
// A Bus reaches the function, by whatever way. Device enumerates it and speaks
// the driver's part of the handshake; Queue moves block requests over a virtqueue
// of package vringtest. In a steady state nothing is allocated, so that a Queue
// can also be a load generator.
//
// It is the peer of the endpoint, and shares no code with it but the
// specification's constants. It never uses package testing, and does what a
// well-behaved driver does; who wants to misbehave uses Bus and the virtqueue
// directly.
package rc
