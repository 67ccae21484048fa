// Package epfdev speaks to the kernel driver pci-epf-user, which lets a process be a
// function of a PCI endpoint controller.
//
// A Device is one open device node. Its methods are the driver's calls, one each;
// what they mean is written in the driver's header. The package keeps no state
// beside the descriptor, and knows nothing of virtio. It is the only one that knows
// the layout of the driver's structures; a test compares it with the header that is
// in kernel-patches.
package epfdev
