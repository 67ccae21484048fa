package virtio

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStatusTransitions(t *testing.T) {
	const (
		a    = Acknowledge
		ad   = a | Driver
		adf  = ad | FeaturesOK
		live = adf | DriverOK
	)
	for _, c := range []struct {
		name     string
		from, to Status
		legal    bool
	}{
		{"first step", Reset, a, true},
		{"second step", a, ad, true},
		{"third step", ad, adf, true},
		{"fourth step", adf, live, true},
		{"two steps at once", Reset, ad, true},
		{"three steps at once", Reset, adf, true},
		{"reset of a live device", live, Reset, true},
		{"reset of nothing", Reset, Reset, true},
		{"reset of a broken device", live | NeedsReset, Reset, true},
		{"the same again", live, live, true},
		{"driver gives up", ad, ad | Failed, true},
		{"driver gives up a live device", live, live | Failed, true},
		{"driver gives up at once", Reset, Failed, true},
		{"reset after giving up", ad | Failed, Reset, true},
		{"needs-reset read and written back", live | NeedsReset, live | NeedsReset | Failed, true},
		{"needs-reset not seen yet", adf | NeedsReset, live, true},
		{"needs-reset made up", adf, live | NeedsReset, true},

		{"driver before acknowledge", Reset, Driver, false},
		{"features before driver", a, a | FeaturesOK, false},
		{"ok before features", ad, ad | DriverOK, false},
		{"ok together with features", ad, live, false},
		{"everything at once", Reset, live, false},
		{"acknowledge cleared", ad, Driver, false},
		{"features cleared", live, live &^ FeaturesOK, false},
		{"stopped without reset", live, adf, false},
		{"failed cleared", ad | Failed, ad, false},
		{"on after failed", ad | Failed, adf | Failed, false},
		{"reserved bit", ad, ad | 0x10, false},
		{"all bits", Reset, 0xff, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := CheckTransition(c.from, c.to)
			if c.legal {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrStatus)
			}
		})
	}
}

// Whatever legal steps a driver takes from a reset, the device goes live only
// from a state in which the features had been agreed upon.
func TestLiveOnlyAfterFeatures(t *testing.T) {
	reached := map[Status]bool{Reset: true}
	for todo := []Status{Reset}; len(todo) > 0; todo = todo[1:] {
		from := todo[0]
		for i := range 256 {
			to := Status(i) &^ NeedsReset
			if CheckTransition(from, to) != nil {
				continue
			}
			if to.Has(DriverOK) {
				require.True(t, from.Has(Acknowledge|Driver|FeaturesOK), "%v to %v", from, to)
			}
			if !reached[to] {
				reached[to] = true
				todo = append(todo, to)
			}
		}
	}
	require.Len(t, reached, 10, "five steps, each with FAILED or without")
}

func TestStatusString(t *testing.T) {
	require.Equal(t, "RESET", Reset.String())
	require.Equal(t, "ACKNOWLEDGE|DRIVER|FEATURES_OK|DRIVER_OK", Status(0xf).String())
	require.Equal(t, "ACKNOWLEDGE|DEVICE_NEEDS_RESET|FAILED|0x20", Status(0xe1).String())
}
