// Package vfiouser speaks the vfio-user protocol: a PCI device offered over a
// UNIX socket to a virtual machine monitor.
//
// Conn is the server's side of one client: Accept negotiates the version, Serve
// executes the client's commands on a Device, in order, and ReadDMA and WriteDMA
// reach client memory that could not be mapped. Client is the other side, as a
// monitor would drive it; tests and tools use it.
//
// The package carries messages and descriptors and checks them: sizes, counts,
// indices, ranges. It knows nothing of what the device is, keeps no device
// state, and never maps client memory. All values on the wire are little-endian,
// as both machines we build for are.
package vfiouser
