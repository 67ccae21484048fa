// Package regfile is the register file of a virtio-pci modern device: what the
// driver's reads of the common configuration, ISR and device configuration
// structures return, and what its writes do (virtio 1.4 §4.1.4).
//
// It stands between the BAR and the function. It owns the registers and their
// rules, and tells a Handler what the driver has decided: start these queues,
// reset. It never touches host memory, a ring or a disk.
//
// Trapped is the register file for controllers that see each access. TrapFree is
// the one for those that see none, where the registers are memory; Solve says what
// can be offered there.
package regfile
