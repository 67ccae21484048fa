// Package epc is the port between an endpoint function and the endpoint
// controller (EPC) that puts it on a PCIe link.
//
// A controller implementation (a package below this one) takes a Function,
// shows its Description to the host, carries the host's register accesses to it
// and tells it of resets and memory changes. The function gets a Controller in
// return: the host's memory and interrupts. Neither side knows what the other
// is: the same function runs on a virtual slot, on a real controller and in a
// test.
//
// The port holds what every controller needs and hardware would otherwise
// bring: the map of host memory (Memory) and the configuration space
// (ConfigSpace). It knows nothing of virtio.
package epc
