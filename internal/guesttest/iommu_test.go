package guesttest

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
	"github.com/vblk-ep/vblk-ep/virtio"
)

// TestVMIOMMU shows that the disk serves a guest that translates the device's addresses:
// what it may reach are single pages then, which come and go with each request.
func TestVMIOMMU(t *testing.T) {
	parallel(t, 1)
	file := image(t, "disk.img", 64*mib)
	s := serve(t, checked, file)
	g := boot(t, vm.Config{
		Devices: s.devices(),
		Cmdline: "intel_iommu=on iommu=nopt iommu.strict=1",
		Args:    []string{"-device", "intel-iommu,caching-mode=on"},
	})
	device := "/sys/block/vda/device"
	require.Equal(t, "DMA", strings.TrimSpace(g.sh(t, "cat "+device+"/../iommu_group/type")))
	features := strings.TrimSpace(g.sh(t, "cat "+device+"/features"))
	require.Equal(t, "1", features[virtio.AccessPlatform:][:1], "features %s", features)

	vda := suite.Image(g.sh, "vda", file)
	vda.Random(t, 1, 4)
	vda.Agrees(t)
	g.powerOff(t)
	s.stop(t)
}
