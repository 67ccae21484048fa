package disk

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSizesReadAsPeopleWriteThem(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "4k": 4096, "4K": 4096, "512M": 512 << 20, "1G": 1 << 30, "2t": 2 << 40, "7E": 7 << 60,
	} {
		got, err := ParseSize(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "K", "-1", "1KB", "1KM", "1MK", "1.5G", "8E", "9223372036854775807K", "one", "1 G"} {
		_, err := ParseSize(text)
		require.Error(t, err, text)
	}
}
