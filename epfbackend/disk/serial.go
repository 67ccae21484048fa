package disk

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// serialLen is the length of the identifier that a driver can ask for (virtio
// 1.4 §5.2.6, VIRTIO_BLK_T_GET_ID).
const serialLen = 20

// deviceSerial returns the serial number of the device whose sysfs directory is
// dir. A partition has its disk's, and its own number. A device without one goes
// by its name.
func deviceSerial(dir string) string {
	whole := wholeDisk(dir)
	serial := printable(ownSerial(whole))
	if serial == "" {
		serial = printable(filepath.Base(whole))
	}
	suffix := ""
	if n, ok := readInt(dir, "partition"); ok {
		suffix = "-p" + strconv.FormatInt(n, 10)
	}
	// The end of a long identifier tells more than its beginning.
	if room := serialLen - len(suffix); len(serial) > room {
		serial = serial[len(serial)-room:]
	}
	return serial + suffix
}

func ownSerial(dir string) string {
	for _, name := range []string{"serial", "device/serial"} {
		if s := read(dir, name); s != "" {
			return s
		}
	}
	// The SCSI page: four bytes, the last two of them the length, then the number.
	if b, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80")); err == nil && len(b) > 4 {
		n := int(b[2])<<8 | int(b[3])
		if s := strings.TrimSpace(string(b[4:min(4+n, len(b))])); s != "" {
			return s
		}
	}
	for _, name := range []string{"wwid", "device/wwid"} {
		if s := read(dir, name); s != "" {
			return s
		}
	}
	return ""
}

// printable drops what is not printable ASCII, and blanks.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
}
