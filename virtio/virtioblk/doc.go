// Package virtioblk holds what the virtio specification (1.4 §5.2) says of block
// devices, as data: feature bits, the configuration space, the request header,
// request types, status bytes, discard and write-zeroes segments. It encodes and
// decodes little-endian structures at named offsets.
//
// It does no I/O and executes nothing: that is package epfbackend's.
package virtioblk
