package regfile

import "github.com/vblk-ep/vblk-ep/virtio"

// Queue is what the driver programmed for one virtqueue.
type Queue struct {
	Size                 int    // entries
	Desc, Driver, Device uint64 // bus addresses of the three areas
}

// Handler carries out what a driver decides. Its methods are called one at a
// time, with the register file locked: they must neither wait nor call back.
type Handler interface {
	// Negotiated: FEATURES_OK stands, the driver has accepted these features.
	// What of the device configuration depends on them is put into config.
	Negotiated(accepted virtio.Features, config []byte)

	// StartQueue: queue i of an active device is ready to be served.
	StartQueue(i int, q Queue)

	// StopQueue: queue i is to be reset. done is closed when nothing of it is
	// in flight and its memory is no longer used.
	StopQueue(i int) (done <-chan struct{})

	// Stop: the device is to be reset; done as in StopQueue, for all queues.
	Stop() (done <-chan struct{})

	// Notify: there may be something new in queue i.
	Notify(i int)

	// WriteConfig: the driver wrote p at off, inside the device configuration.
	// What of it may be written is put into config. Nothing may be before the
	// features are negotiated.
	WriteConfig(config []byte, off int, p []byte)

	// ResetConfig: the device has been reset. What the driver changed in config
	// is put back to its value at reset.
	ResetConfig(config []byte)

	// SetINTx drives the interrupt pin, which follows the ISR status.
	SetINTx(asserted bool)
}
