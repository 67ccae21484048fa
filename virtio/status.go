package virtio

import (
	"errors"
	"fmt"
	"strings"
)

// Status is the device status field (§2.1). The driver sets bits one after the
// other; the device sets only NeedsReset.
type Status uint8

// Device status bits. Reset is the value, not a bit, whose write resets the
// device.
const (
	Reset       Status = 0
	Acknowledge Status = 1    // the driver has seen the device
	Driver      Status = 2    // the driver knows how to drive it
	DriverOK    Status = 4    // the driver is ready: the device is live
	FeaturesOK  Status = 8    // feature negotiation is complete
	NeedsReset  Status = 0x40 // the device has met an error it cannot recover from
	Failed      Status = 0x80 // the driver has given up
)

// Has reports whether all bits of t are set in s.
func (s Status) Has(t Status) bool { return s&t == t }

// String lists the bits by name, as "ACKNOWLEDGE|DRIVER"; "RESET" is 0.
func (s Status) String() string {
	if s == Reset {
		return "RESET"
	}
	var list []string
	for _, b := range [...]struct {
		bit  Status
		name string
	}{
		{Acknowledge, "ACKNOWLEDGE"},
		{Driver, "DRIVER"},
		{FeaturesOK, "FEATURES_OK"},
		{DriverOK, "DRIVER_OK"},
		{NeedsReset, "DEVICE_NEEDS_RESET"},
		{Failed, "FAILED"},
	} {
		if s.Has(b.bit) {
			list = append(list, b.name)
			s &^= b.bit
		}
	}
	if s != 0 {
		list = append(list, fmt.Sprintf("%#x", uint8(s)))
	}
	return strings.Join(list, "|")
}

// ErrStatus is the cause of every error of CheckTransition.
var ErrStatus = errors.New("illegal device status")

// prerequisite says which bits must stand before a bit may be set. FEATURES_OK
// may not come together with DRIVER_OK, because the driver has to read it back
// in between: the device may have refused it (§3.1.1, steps 5 to 8). The two
// bits before it tell the device nothing it could refuse, so they may come in
// one write.
var prerequisite = [...]struct{ bit, before, together Status }{
	{Driver, 0, Acknowledge},
	{FeaturesOK, 0, Acknowledge | Driver},
	{DriverOK, FeaturesOK, Acknowledge | Driver | FeaturesOK},
}

// CheckTransition says whether a driver may write to while the field reads from
// (§2.1.1, §3.1.1). Reset is always legal. Otherwise bits are only added, in
// order, and nothing but a reset follows FAILED. NeedsReset belongs to the
// device: what the driver writes there, having read it or not, is of no
// consequence. The error wraps ErrStatus.
func CheckTransition(from, to Status) error {
	if to == Reset {
		return nil
	}
	from, to = from&^NeedsReset, to&^NeedsReset
	refuse := func(why string) error {
		return fmt.Errorf("%w: %v to %v: %s", ErrStatus, from, to, why)
	}
	added := to &^ from
	switch {
	case to&^(Acknowledge|Driver|DriverOK|FeaturesOK|Failed) != 0:
		return refuse("reserved bits")
	case from&^to != 0:
		return refuse("only a reset clears bits")
	case from.Has(Failed) && added != 0:
		return refuse("only a reset follows FAILED")
	}
	for _, p := range prerequisite {
		if added.Has(p.bit) && (!from.Has(p.before) || !to.Has(p.together)) {
			return refuse(p.bit.String() + " too early")
		}
	}
	return nil
}
