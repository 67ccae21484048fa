package suite

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// Discards discards and zeroes parts of the disk, of so many MiB each, and looks at
// them on the host, behind the server, and at what is allocated on this machine. The
// disk has room for eight.
func (d Disk) Discards(t *testing.T, mibs int64) {
	t.Helper()
	d.sh(t, fmt.Sprintf("fill $d %d 0; sync", 8*mibs))
	part := mibs * mib
	full := d.allocated(t)
	require.GreaterOrEqual(t, full, 8*part)
	for i, c := range []string{
		"blkdiscard -o %d -l %d /dev/$d",
		"blkdiscard -z -o %d -l %d /dev/$d",
		"fallocate -p -o %d -l %d /dev/$d",
	} {
		at := int64(2*i+1) * mibs
		d.sh(t, fmt.Sprintf(c+`
			dd if=/dev/$d bs=1M skip=%d count=%d iflag=direct status=none | tr -cd '\0' | wc -c | grep -qx %d
		`, at*mib, part, at, mibs, part))
		d.consists(t, `\0`, at, mibs)
		d.consists(t, `\252`, at-mibs, mibs) // nothing before it
		d.consists(t, `\252`, at+mibs, mibs) // nothing behind it
	}
	assert.True(t, d.hole(t, part, part), "what was discarded is a hole")
	assert.True(t, d.hole(t, 5*part, part), "what was zeroed and may be given back is a hole")
	assert.InDelta(t, full-2*part, d.allocated(t), float64(part)/4, "what was zeroed without that is not")

	d.sh(t, fmt.Sprintf("blkdiscard -f -l %d /dev/$d", 8*part))
	assert.True(t, d.hole(t, 0, 8*part), "all is discarded")
	assert.InDelta(t, full-8*part, d.allocated(t), float64(part)/4)
}

// consists fails the test unless some MiB behind the server are all one byte.
func (d Disk) consists(t *testing.T, octal string, at, mibs int64) {
	t.Helper()
	d.behind(t, fmt.Sprintf(`
		same=$(dd if="$back" bs=1M skip=%d count=%d status=none | tr -cd '%s' | wc -c)
		[ $same = %d ] || { echo "$same bytes are %[3]s in %[2]d MiB at %[1]d MiB"; exit 1; }
	`, at, mibs, octal, mibs*mib))
}

// hole says whether a range of the disk takes no space on this machine.
func (d Disk) hole(t *testing.T, offset, length int64) bool {
	t.Helper()
	f, err := os.Open(d.File)
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	offset += d.At
	data, err := unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return true // no data from here on
	}
	require.NoError(t, err)
	return data >= offset+length
}

// allocated returns how many bytes of storage the file takes on this machine.
func (d Disk) allocated(t *testing.T) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(d.File, &st))
	return st.Blocks * 512
}
