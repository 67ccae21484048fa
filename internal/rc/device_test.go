package rc_test

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
)

// space is a Bus of which there is nothing but a configuration space.
type space struct {
	rc.Bus
	config [virtiopci.ConfigLen]byte
}

func (s *space) ReadConfig(off int, p []byte) error {
	copy(p, s.config[off:])
	return nil
}

// A capability that begins so late that the configuration space ends within it.
func TestOpenCapabilityWithoutRoom(t *testing.T) {
	for _, id := range []byte{virtiopci.CapIDMSIX, virtiopci.CapIDVendor} {
		for _, at := range []byte{0xf8, 0xfc} {
			var s space
			binary.LittleEndian.PutUint16(s.config[virtiopci.ConfigVendorID:], virtiopci.VendorID)
			binary.LittleEndian.PutUint16(s.config[virtiopci.ConfigDeviceID:], virtiopci.DeviceIDBase+virtioblk.DeviceType)
			binary.LittleEndian.PutUint16(s.config[virtiopci.ConfigStatus:], virtiopci.StatusCapabilityList)
			s.config[virtiopci.ConfigCapabilities] = at
			s.config[at+virtiopci.CapVndr] = id
			_, err := rc.Open(&s)
			require.ErrorIs(t, err, rc.ErrDevice, "%#x at %#x", id, at)
		}
	}
}
