// Package irq is the interrupts of a device that is served over vfio-user: the
// eventfds a client has set up for INTx, MSI and MSI-X, and the pin's level.
//
// It stands on internal/vfiouser, whose SET_IRQS it executes. What an interrupt
// means, and whether the device may raise it now, is its user's business. It
// waits for a client at most until that is gone, and writes to nothing that is not
// an eventfd.
package irq
