package virtio

import (
	"fmt"
	"math/bits"
	"strings"
)

// Feature is the number of one feature bit, 0 to 127 (§2.2). Bits 24 to 49
// belong to rings and transports and are named here; the others belong to the
// device type.
type Feature uint8

// Feature bits of rings and transports (§6).
const (
	IndirectDesc     Feature = 28 // a descriptor may refer to a table of descriptors
	EventIdx         Feature = 29 // notifications are suppressed by index, not by flag
	Version1         Feature = 32 // the device follows virtio 1.0 and later
	AccessPlatform   Feature = 33 // ring and buffer addresses are bus addresses, perhaps translated
	RingPacked       Feature = 34 // the packed virtqueue layout
	InOrder          Feature = 35 // buffers are used in the order they were made available
	OrderPlatform    Feature = 36 // memory accesses are ordered as for a device on a bus
	SRIOV            Feature = 37 // single root I/O virtualisation
	NotificationData Feature = 38 // notifications carry the available index
	NotifConfigData  Feature = 39 // notifications carry a value the device chose
	RingReset        Feature = 40 // queues can be reset one by one
	AdminVQ          Feature = 41 // administration virtqueues
	Suspend          Feature = 43 // the device can be suspended
)

// Names gives feature bits their names. Device types have one of their own, for
// their own bits; String and Describe add those of rings and transports.
type Names map[Feature]string

var names = Names{
	IndirectDesc:     "INDIRECT_DESC",
	EventIdx:         "EVENT_IDX",
	Version1:         "VERSION_1",
	AccessPlatform:   "ACCESS_PLATFORM",
	RingPacked:       "RING_PACKED",
	InOrder:          "IN_ORDER",
	OrderPlatform:    "ORDER_PLATFORM",
	SRIOV:            "SR_IOV",
	NotificationData: "NOTIFICATION_DATA",
	NotifConfigData:  "NOTIF_CONFIG_DATA",
	RingReset:        "RING_RESET",
	AdminVQ:          "ADMIN_VQ",
	Suspend:          "SUSPEND",
}

// String returns the specification's name of f without its prefix, or "bit N"
// where the name depends on the device type.
func (f Feature) String() string { return f.Name(nil) }

// Name is String with the names of a device type.
func (f Feature) Name(device Names) string {
	if s, ok := names[f]; ok {
		return s
	}
	if s, ok := device[f]; ok {
		return s
	}
	return fmt.Sprintf("bit %d", uint8(f))
}

// dwords is how many 32-bit selections a driver can make. Drivers that know 64
// bits make two; drivers that know 128 bits make four.
const dwords = 4

// Features is a set of feature bits, in the 32-bit pieces in which a driver
// reads and writes them. It is a value: comparable, and the zero value is the
// empty set.
type Features [dwords]uint32

// NewFeatures returns the set of the given bits.
func NewFeatures(list ...Feature) Features { return Features{}.With(list...) }

// Has reports whether f is in the set.
func (s Features) Has(f Feature) bool {
	return f/32 < dwords && s[f/32]&(1<<(f%32)) != 0
}

// With returns the set with the given bits added. Bits above 127 do not exist
// and are left out.
func (s Features) With(list ...Feature) Features {
	for _, f := range list {
		if f/32 < dwords {
			s[f/32] |= 1 << (f % 32)
		}
	}
	return s
}

// Without returns the set with the given bits removed.
func (s Features) Without(list ...Feature) Features {
	for _, f := range list {
		if f/32 < dwords {
			s[f/32] &^= 1 << (f % 32)
		}
	}
	return s
}

// And returns the bits that are in both sets.
func (s Features) And(t Features) Features {
	for i := range s {
		s[i] &= t[i]
	}
	return s
}

// Minus returns the bits of s that are not in t.
func (s Features) Minus(t Features) Features {
	for i := range s {
		s[i] &^= t[i]
	}
	return s
}

// Empty reports whether no bit is set.
func (s Features) Empty() bool { return s == Features{} }

// Dword returns bits 32×sel to 32×sel+31: what device_feature reads for that
// selection (§4.1.4.3). A driver may select anything; what does not exist reads 0.
func (s Features) Dword(sel uint32) uint32 {
	if sel >= dwords {
		return 0
	}
	return s[sel]
}

// WithDword returns the set with bits 32×sel to 32×sel+31 replaced by v: what a
// write of driver_feature does for that selection. Selections that do not exist
// change nothing.
func (s Features) WithDword(sel, v uint32) Features {
	if sel < dwords {
		s[sel] = v
	}
	return s
}

// All calls yield for each bit of the set, lowest first.
func (s Features) All(yield func(Feature) bool) {
	for i, w := range s {
		for ; w != 0; w &= w - 1 {
			if !yield(Feature(32*i + bits.TrailingZeros32(w))) {
				return
			}
		}
	}
}

// String lists the bits by name, lowest first, as "{EVENT_IDX VERSION_1}". Bits
// of the device type are listed by number; Describe knows them.
func (s Features) String() string { return s.Describe(nil) }

// Describe is String with the names of a device type.
func (s Features) Describe(device Names) string {
	var list []string
	for f := range s.All {
		list = append(list, f.Name(device))
	}
	return "{" + strings.Join(list, " ") + "}"
}

// FeatureError says which bit makes a driver's choice unacceptable.
type FeatureError struct {
	Feature Feature
	Reason  string
}

func (e *FeatureError) Error() string {
	return fmt.Sprintf("feature %v: %s", e.Feature, e.Reason)
}

// Validate says whether a driver may set FEATURES_OK after having accepted s from
// a device that offered offered (§2.2.1, §3.1.1, §6.1): nothing may be accepted
// that was not offered, and VERSION_1 must be, because this device has no legacy
// interface. The error is a *FeatureError that names the first offending bit.
func (s Features) Validate(offered Features) error {
	for f := range s.Minus(offered).All {
		return &FeatureError{f, "accepted, but was not offered"}
	}
	if !s.Has(Version1) {
		return &FeatureError{Version1, "not accepted; legacy drivers are not served"}
	}
	return nil
}
