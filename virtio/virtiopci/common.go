package virtiopci

// Offsets of the registers in the common configuration structure (§4.1.4.3,
// struct virtio_pci_common_cfg), in bytes.
const (
	DeviceFeatureSelect  = 0x00 // u32
	DeviceFeature        = 0x04 // u32, read-only
	DriverFeatureSelect  = 0x08 // u32
	DriverFeature        = 0x0c // u32
	ConfigMSIXVector     = 0x10 // u16
	NumQueues            = 0x12 // u16, read-only
	DeviceStatus         = 0x14 // u8
	ConfigGeneration     = 0x15 // u8, read-only
	QueueSelect          = 0x16 // u16
	QueueSize            = 0x18 // u16
	QueueMSIXVector      = 0x1a // u16
	QueueEnable          = 0x1c // u16
	QueueNotifyOff       = 0x1e // u16, read-only
	QueueDesc            = 0x20 // u64
	QueueDriver          = 0x28 // u64
	QueueDevice          = 0x30 // u64
	QueueNotifConfigData = 0x38 // u16, read-only
	QueueReset           = 0x3a // u16
	AdminQueueIndex      = 0x3c // u16, read-only
	AdminQueueNum        = 0x3e // u16, read-only

	// CommonCfgLen is the length of the structure.
	CommonCfgLen = 0x40
)

// NoVector in an MSI-X vector register means: no interrupt (§4.1.5.1.2). The
// device answers with it when it cannot map the vector that was written.
const NoVector = 0xffff

// Register describes one register of the common configuration structure.
type Register struct {
	Name     string
	Offset   int
	Width    int  // in bytes: 1, 2, 4 or 8
	ReadOnly bool // for the driver
	PerQueue bool // shows the queue in queue_select
}

// End returns the offset of the first byte behind the register.
func (r Register) End() int { return r.Offset + r.Width }

// Registers lists the registers of the common configuration structure in the
// order of their offsets, without a gap.
var Registers = [...]Register{
	{"device_feature_select", DeviceFeatureSelect, 4, false, false},
	{"device_feature", DeviceFeature, 4, true, false},
	{"driver_feature_select", DriverFeatureSelect, 4, false, false},
	{"driver_feature", DriverFeature, 4, false, false},
	{"config_msix_vector", ConfigMSIXVector, 2, false, false},
	{"num_queues", NumQueues, 2, true, false},
	{"device_status", DeviceStatus, 1, false, false},
	{"config_generation", ConfigGeneration, 1, true, false},
	{"queue_select", QueueSelect, 2, false, false},
	{"queue_size", QueueSize, 2, false, true},
	{"queue_msix_vector", QueueMSIXVector, 2, false, true},
	{"queue_enable", QueueEnable, 2, false, true},
	{"queue_notify_off", QueueNotifyOff, 2, true, true},
	{"queue_desc", QueueDesc, 8, false, true},
	{"queue_driver", QueueDriver, 8, false, true},
	{"queue_device", QueueDevice, 8, false, true},
	{"queue_notif_config_data", QueueNotifConfigData, 2, true, true},
	{"queue_reset", QueueReset, 2, false, true},
	{"admin_queue_index", AdminQueueIndex, 2, true, false},
	{"admin_queue_num", AdminQueueNum, 2, true, false},
}

// registerAt maps each byte of the structure to its register.
var registerAt = func() (at [CommonCfgLen]uint8) {
	for i, r := range Registers {
		for off := r.Offset; off < r.End(); off++ {
			at[off] = uint8(i)
		}
	}
	return at
}()

// RegisterAt returns the register that an access of n bytes at offset off means,
// and whether it is one that §4.1.3.1 allows: a whole register, or one half of a
// 64-bit one.
func RegisterAt(off, n int) (Register, bool) {
	if off < 0 || off >= CommonCfgLen {
		return Register{}, false
	}
	r := Registers[registerAt[off]]
	whole := off == r.Offset && n == r.Width
	half := r.Width == 8 && n == 4 && off%4 == 0
	return r, whole || half
}
