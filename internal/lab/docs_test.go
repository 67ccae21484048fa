package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The driver's author reads the document, not this package.
func TestDocumentAgrees(t *testing.T) {
	text, err := os.ReadFile("../../docs/lab.md")
	require.NoError(t, err)
	doc := string(text)
	row := func(format string, args ...any) {
		t.Helper()
		if want := fmt.Sprintf(format, args...); !strings.Contains(doc, want) {
			t.Errorf("docs/lab.md has no %q", want)
		}
	}
	row("`%04x:%04x`", VendorID, DeviceID)
	row("0x%08x", uint32(identity))
	for off, name := range map[int]string{
		RegID: "ID", RegVersion: "VERSION", RegCaps0: "CAPS0", RegCaps1: "CAPS1", RegControl: "CONTROL",
		RegStatus: "STATUS", RegEvent: "EVENT", RegEventEnable: "EVENT_ENABLE", RegMSI: "MSI", RegMSIX: "MSIX",
		RegMSIXTable: "MSIX_TABLE", RegMSIXPBA: "MSIX_PBA", RegCapNext: "CAP_NEXT", RegFunction: "FUNCTION", RegCaps2: "CAPS2", RegIRQRaise: "IRQ_RAISE",
		RegIRQResult: "IRQ_RESULT", RegOBErrorLo: "OB_ERROR_LO, _HI", RegOBErrors: "OB_ERRORS",
	} {
		row("| 0x%04x | %s |", off, name)
	}
	for off, name := range map[int]string{
		BARControl: "BAR_CTRL", BARSizeLo: "BAR_SIZE_LO, _HI", BARAddrLo: "BAR_ADDR_LO, _HI",
	} {
		row("| +0x%02x | %s |", off, name)
	}
	for off, name := range map[int]string{
		DMAControl: "DMA_CTRL", DMAStatus: "DMA_STATUS", DMARingLo: "DMA_RING_LO, _HI", DMASize: "DMA_SIZE",
		DMAHead: "DMA_HEAD", DMATail: "DMA_TAIL",
	} {
		row("| +0x%02x | %s |", off, name)
	}
	for off, name := range map[int]string{
		MapControl: "CTRL", MapResult: "RESULT", MapOffsetLo: "OFFSET_LO, _HI", MapSizeLo: "SIZE_LO, _HI", MapAddrLo: "ADDR_LO, _HI",
	} {
		row("| +0x%02x | RANGE_%s |", off, name)
		row("| +0x%02x | WINDOW_%s |", off, name)
	}
	for off, name := range map[int]string{
		DescFlags: "FLAGS", DescLength: "LENGTH", DescLocal: "LOCAL", DescRemote: "REMOTE", DescStatus: "STATUS",
	} {
		row("| 0x%02x | %s |", off, name)
	}
	for bit, name := range []string{
		"LINK_DOWN", "PERST_ASSERT", "PERST_DEASSERT", "LINK_UP", "BUS_MASTER", "IRQ_ENABLE", "OB_ERROR",
	} {
		row("| %d | %s |", bit, name)
	}
	row("0x%04x + 0x%04x × f, f = 0 … %d", blockFunctions, strideFunction, numFunctions-1)
	row("0x%04x + 0x%02x × BAR", blockBARs, strideBAR)
	row("0x%04x + 0x%02x × n, n = 0 … %d", blockRanges, strideRange, numRanges-1)
	row("0x%04x + 0x%02x × n, n = 0 … %d", blockWindows, strideWindow, numWindows-1)
	row("0x%04x + 0x%02x × c, c = 0 … %d", blockDMA, strideChannel, numChannels-1)
	row("### Doorbell: 0x%04x", blockDoorbell)
	row("%d vectors: 0 is for events, 1 + c for DMA channel c, %d for the doorbell", numVectors, vectorDoorbell)
	row("0x%04x … 0x%04x", blockConfig, blockConfig+configSize-1)
}
