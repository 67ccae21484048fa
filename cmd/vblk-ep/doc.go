// Command vblk-ep turns this machine into a PCIe endpoint whose function is a
// virtio-blk device, so that the stock driver of the host on the other side
// uses a disk of ours.
//
// This package reads the command line, joins the parts and runs them. It is the
// only place that names concrete disks and controllers; nothing of the data
// path is here.
package main
