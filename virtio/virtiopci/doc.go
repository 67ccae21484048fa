// Package virtiopci holds the layout of a virtio device on PCI (virtio 1.4 §4.1)
// as data: identifiers, vendor capabilities, the common configuration structure,
// the ISR byte, MSI-X, and as much of the PCI configuration header as they need.
// It encodes and decodes little-endian structures at named offsets.
//
// It does no I/O, keeps no register values and decides nothing: the register
// files of the device and the host-side driver are built on it.
package virtiopci
