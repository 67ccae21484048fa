// Package epfuser puts functions on a real PCI endpoint controller: it implements the
// port in package epc with the kernel driver pci-epf-user.
//
// An Endpoint is one controller, configured through configfs; a Slot is one function
// of it. Open finds the controller, Add makes a function and binds it, Program says
// what it is, and Serve runs it; the controller is started when all functions are
// there. Close undoes all of it, in reverse.
//
// The host's register accesses are never seen: BARs are memory, notifications are
// interrupts of the controller, and host memory is reached by transfers. This
// package knows nothing of virtio.
package epfuser
