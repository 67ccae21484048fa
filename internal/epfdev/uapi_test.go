package epfdev

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// header returns the driver's header out of the patch that adds it.
func header(t *testing.T) string {
	t.Helper()
	const name = "include/uapi/linux/pci-epf-user.h"
	patches, err := filepath.Glob("../../kernel-patches/series/*.patch")
	require.NoError(t, err)
	for _, p := range patches {
		b, err := os.ReadFile(p)
		require.NoError(t, err)
		_, rest, found := strings.Cut(string(b), "\n+++ b/"+name+"\n")
		if !found {
			continue
		}
		rest, _, _ = strings.Cut(rest, "\ndiff --git")
		var text strings.Builder
		for line := range strings.Lines(rest) {
			if added, ok := strings.CutPrefix(line, "+"); ok {
				text.WriteString(added)
			}
		}
		return regexp.MustCompile(`(?s)/\*.*?\*/`).ReplaceAllString(text.String(), "")
	}
	t.Fatalf("no patch adds %s", name)
	return ""
}

// Each constant is in the header, with this value.
func TestConstantsAreTheHeaders(t *testing.T) {
	h := header(t)
	defined := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^#define\s+EPF_USER_(\w+)\s+(\S.*)$`).FindAllStringSubmatch(h, -1) {
		defined[m[1]] = strings.TrimSpace(m[2])
	}
	for name, value := range map[string]uint64{
		"API_VERSION": apiVersion, "IOC_MAGIC": magic, "MAX_RANGES": maxRanges, "MAX_CAPABILITY": maxCapability,
		"NUM_BARS":   uint64(len(Info{}.BARs)),
		"MAX_COPIES": MaxCopies, "MAX_BYTES": MaxBytes,
		"BAR_FREE": BARFree, "BAR_FIXED": BARFixed, "BAR_64ONLY": BAR64Only, "BAR_RESIZABLE": BARResizable,
		"HAS_MSIX": HasMSIX, "HAS_MSI": HasMSI, "HAS_INTX": HasINTx, "HAS_CAPS": HasCaps,
		"HAS_SUBRANGE": HasSubRange, "HAS_DMA": HasDMA, "HAS_LINK": HasLink, "HAS_DYNAMIC": HasDynamic,
		"COMMITTED": Committed, "INITIALIZED": Initialized, "LINK_UP": LinkUp, "BUS_MASTER": BusMaster,
		"BUS_MASTER_KNOWN": BusMasterKnown, "RANGES_MAPPED": RangesMapped,
		"DOORBELL_ITS": DoorbellITS, "DOORBELL_SHARED": DoorbellShared,
		"DOORBELL_16BIT": Doorbell16Bit, "DOORBELL_LINEAR": DoorbellLinear, "DOORBELL_EXPOSED": DoorbellExposed,
		"RANGE_MEMORY": RangeMemory, "RANGE_DOORBELL": RangeDoorbell,
		"BAR_MEM64": BARMem64, "BAR_PREFETCH": BARPrefetch,
		"IRQ_MSIX": irqMSIX, "EVENT_INIT": EventInit, "EVENT_DEINIT": EventDeinit, "EVENT_LINK_UP": EventLinkUp,
		"EVENT_LINK_DOWN": EventLinkDown, "EVENT_BUS_MASTER": EventBusMaster, "TO_HOST": ToHost, "BY_CPU": ByCPU,
	} {
		require.Contains(t, defined, name)
		require.Equal(t, value, eval(t, defined[name]), name)
	}
	require.Regexp(t, `EPF_USER_MMAP_BAR\(n\)\s+\(\(__u64\)\(n\) << 32\)`, h)
	require.Regexp(t, `EPF_USER_MMAP_STATE\s+\(\(__u64\)8 << 32\)`, h)
	require.EqualValues(t, 1<<32, mmapBAR)
	require.EqualValues(t, 8<<32, mmapState)
}

// eval evaluates what the header has as values of constants.
func eval(t *testing.T, text string) uint64 {
	t.Helper()
	a, b, shifted := strings.Cut(strings.Trim(text, "()"), "<<")
	v, err := strconv.ParseUint(strings.TrimSpace(a), 0, 64)
	require.NoError(t, err, text)
	if shifted {
		n, err := strconv.ParseUint(strings.TrimSpace(b), 0, 64)
		require.NoError(t, err, text)
		v <<= n
	}
	return v
}

// field is a field of a structure of the header.
type field struct {
	name         string
	offset, size uintptr
}

// layout lays a structure of the header out as a C compiler does on 64-bit machines.
func layout(t *testing.T, h, name string) (fields []field, size uintptr) {
	t.Helper()
	m := regexp.MustCompile(`(?s)struct epf_user_` + name + ` \{(.*?)\n\};`).FindStringSubmatch(h)
	require.NotNil(t, m, name)
	align := uintptr(1)
	for _, m := range regexp.MustCompile(`(?m)^\s*(struct \w+|\w+)\s+(\w+)(?:\[(\w+)\])?;`).FindAllStringSubmatch(m[1], -1) {
		one, a := sizeOf(t, h, m[1])
		n := uintptr(1)
		if m[3] != "" {
			n = count(t, h, m[3])
		}
		size = (size + a - 1) / a * a
		fields = append(fields, field{m[2], size, one * n})
		size += one * n
		align = max(align, a)
	}
	require.NotEmpty(t, fields, name)
	require.Zero(t, size%align, "struct %s has a hole at its end", name)
	return fields, size
}

func count(t *testing.T, h, text string) uintptr {
	t.Helper()
	if m := regexp.MustCompile(`(?m)^#define\s+` + text + `\s+(\w+)`).FindStringSubmatch(h); m != nil {
		text = m[1]
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err)
	return uintptr(n)
}

func sizeOf(t *testing.T, h, kind string) (size, align uintptr) {
	t.Helper()
	if inner, ok := strings.CutPrefix(kind, "struct epf_user_"); ok {
		fields, size := layout(t, h, inner)
		for _, f := range fields {
			align = max(align, f.size&-f.size)
		}
		return size, min(align, 8)
	}
	n, ok := map[string]uintptr{
		"char": 1, "__u8": 1, "__u16": 2, "__u32": 4, "__s32": 4, "__u64": 8, "__aligned_u64": 8,
	}[kind]
	require.True(t, ok, kind)
	return n, n
}

// Each structure has the fields of the header's, at the same places.
func TestStructuresAreTheHeaders(t *testing.T) {
	h := header(t)
	for name, ours := range map[string]any{
		"bar_info": BARInfo{}, "info": Info{}, "header": Header{}, "capability": capability{}, "doorbells": Doorbells{},
		"range": Range{}, "bar": bar{}, "msix": msix{}, "eventfd": eventfd{}, "irq": irq{}, "event": Event{},
		"buffer": buffer{}, "segment": Segment{}, "transfer": transfer{}, "copy_segment": copySegment{}, "copy": copyArgs{},
	} {
		want, size := layout(t, h, name)
		typ := reflect.TypeOf(ours)
		var got []string
		for i := range typ.NumField() {
			f := typ.Field(i)
			got = append(got, fmt.Sprintf("+%d %d bytes", f.Offset, f.Type.Size()))
		}
		var expected []string
		for _, f := range want {
			expected = append(expected, fmt.Sprintf("+%d %d bytes", f.offset, f.size))
		}
		require.Equal(t, expected, got, "struct %s: %v", name, want)
		require.Equal(t, size, typ.Size(), name)
	}
}

// Each call has the header's number, direction and structure.
func TestCallsAreTheHeaders(t *testing.T) {
	h := header(t)
	for name, ours := range map[string]uintptr{
		"INFO": callInfo, "SET_HEADER": callSetHeader, "ADD_CAPABILITY": callAddCapability,
		"ALLOC_DOORBELLS": callAllocDoorbells, "SET_BAR": callSetBAR, "SET_MSIX": callSetMSIX,
		"COMMIT": callCommit, "REVOKE": callRevoke, "SET_EVENTFD": callSetEventfd, "RAISE_IRQ": callRaiseIRQ,
		"REGISTER_BUFFER": callRegister, "UNREGISTER_BUFFER": callUnregister, "COPY": callCopy,
		"MAP_RANGES": callMapRanges, "CMD_TRANSFER": cmdTransfer,
	} {
		m := regexp.MustCompile(`(?m)^#define\s+EPF_USER_` + name +
			`\s+_(IOWR|IOW|IOR|IO)\(EPF_USER_IOC_MAGIC, (\w+)(?:, struct epf_user_(\w+))?\)`).FindStringSubmatch(h)
		require.NotNil(t, m, name)
		var size uintptr
		if m[3] != "" {
			_, size = layout(t, h, m[3])
		}
		direction := map[string]int{"IO": iocNone, "IOW": iocWrite, "IOR": iocRead, "IOWR": iocRead | iocWrite}[m[1]]
		require.Equal(t, ioc(direction, int(eval(t, m[2])), size), ours, name)
	}
	require.EqualValues(t, 16, unsafe.Sizeof(transfer{}), "the room that a submission has for a command")
}
