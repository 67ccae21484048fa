// Package lab joins two virtual machines by a PCIe link. To the root complex's
// guest it is one PCI function, to the endpoint's guest it is the endpoint
// controller with which that guest's software makes the function what it is.
// Both are served over vfio-user. docs/lab.md has the registers.
//
// It stands beside the line, not in it: it knows nothing of virtio or of block
// devices, and serves any endpoint function. It starts no guests: whoever does
// gives it a [Slot], by which it plugs the function into the root complex when
// the endpoint starts the link.
//
// It never changes a value, a size or the order of what it forwards, and never
// makes up a success: what real hardware would refuse is refused.
package lab
