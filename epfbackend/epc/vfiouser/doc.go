// Package vfiouser is the virtual slot: an implementation of the port in package
// epc for VMMs that speak vfio-user, QEMU above all.
//
// A Slot is a Unix socket. Each client in turn gets a session, in which the
// function stands as a PCI device: configuration space and interrupts are
// modelled here, host memory is mapped from the descriptors that the client
// sends, and register accesses go to the function. The protocol itself is
// internal/vfiouser's. This package knows nothing of virtio.
package vfiouser
