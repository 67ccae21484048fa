package vfiouser

import (
	"bytes"
	"encoding/json"
	"fmt"
)

const versionSize = 4 // major and minor; JSON text and a NUL may follow

// The protocol version spoken here.
const (
	versionMajor = 0
	versionMinor = 0
)

// MaxDMAMaps is the number of client memory regions that a peer may keep mapped
// (max_dma_maps). It is below the protocol's 65535 because each may cost the
// process one of the mappings that the kernel grants it, 65530 by default.
const MaxDMAMaps = 16384

// minTransfer is the smallest max_data_xfer_size accepted of a peer, so that a
// transfer ends in a sane number of messages.
const minTransfer = 4096

// Capabilities are what a peer says of itself in the version message.
type Capabilities struct {
	MaxTransfer int // bytes of data it takes in one message
	MaxDMAMaps  int // client memory regions, at most
}

// defaultCapabilities stand for a peer that says nothing.
func defaultCapabilities() Capabilities { return Capabilities{MaxTransfer, 65535} }

type versionJSON struct {
	Capabilities struct {
		MaxTransfer *uint64 `json:"max_data_xfer_size"`
		MaxDMAMaps  *uint64 `json:"max_dma_maps"`
	} `json:"capabilities"`
}

// ourCapabilities is the JSON text of our version message. write_multiple is
// off: it makes a client hold writes back to gather them.
var ourCapabilities = fmt.Sprintf(`{"capabilities":{"max_msg_fds":%d,"max_data_xfer_size":%d,`+
	`"max_dma_maps":%d,"pgsizes":4096,"write_multiple":false}}`, MaxFDs, MaxTransfer, MaxDMAMaps)

// putVersion returns a version payload of at most limit bytes: a client may
// read the reply into the buffer of its request.
func putVersion(limit int) []byte {
	b := make([]byte, versionSize, versionSize+len(ourCapabilities)+1)
	le.PutUint16(b[0:], versionMajor)
	le.PutUint16(b[2:], versionMinor)
	for _, text := range []string{ourCapabilities, "{}"} {
		if versionSize+len(text)+1 <= limit {
			return append(append(b, text...), 0)
		}
	}
	return b
}

// parseVersion reads a peer's version payload; JSON is optional in it.
func parseVersion(b []byte) (Capabilities, error) {
	caps := defaultCapabilities()
	if err := need(b, versionSize, "VERSION"); err != nil {
		return caps, err
	}
	if major := le.Uint16(b); major != versionMajor {
		return caps, fmt.Errorf("protocol version %d.%d is not spoken here, only %d.%d",
			major, le.Uint16(b[2:]), versionMajor, versionMinor)
	}
	text, terminated := bytes.CutSuffix(b[versionSize:], []byte{0})
	if len(text) == 0 {
		return caps, nil
	}
	if !terminated {
		return caps, fmt.Errorf("%w: VERSION text does not end in NUL", ErrMalformed)
	}
	var v versionJSON
	if err := json.Unmarshal(text, &v); err != nil {
		return caps, fmt.Errorf("%w: VERSION text: %v", ErrMalformed, err)
	}
	c := v.Capabilities
	limit(&caps.MaxTransfer, c.MaxTransfer)
	limit(&caps.MaxDMAMaps, c.MaxDMAMaps)
	if caps.MaxTransfer < minTransfer {
		return caps, fmt.Errorf("%w: max_data_xfer_size of %d, needs %d", ErrMalformed, caps.MaxTransfer, minTransfer)
	}
	return caps, nil
}

// limit takes over what a peer said, up to what an int holds and we can use.
func limit(dst *int, said *uint64) {
	if said != nil {
		*dst = int(min(*said, 1<<30))
	}
}
