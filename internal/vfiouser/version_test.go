package vfiouser

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// qemuVersion is the text of QEMU's version message.
const qemuVersion = `{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, ` +
	`"max_data_xfer_size": 1048576, "migration": {"pgsize": 4096, "max_bitmap_size": 268435456}, "write_multiple": true}}`

func versionPayload(minor byte, text string) []byte {
	return append([]byte{0, 0, minor, 0}, text...)
}

func TestVersionReplyFitsTheRequest(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"QEMU", qemuVersion + "\x00", ourCapabilities + "\x00"},
		{"little room", "{\"capabilities\":{}}\x00", "{}\x00"},
		{"empty object", "{}\x00", "{}\x00"},
		{"no text", "", ""},
		{"NUL alone", "\x00", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, Options{})
			r.send(message1(CmdVersion, 0, versionPayload(1, tc.text)))
			h, payload := r.receive()
			require.Equal(t, Header{ID: 1, Command: CmdVersion, Size: uint32(16 + len(payload)), Flags: FlagReply}, h)
			require.Equal(t, string(versionPayload(0, tc.want)), string(payload))
			require.LessOrEqual(t, len(payload), 4+len(tc.text))
			r.alive()
		})
	}
}

func TestVersionTakesOverLimits(t *testing.T) {
	r := newRig(t, Options{})
	r.send(message1(CmdVersion, 0, versionPayload(0, `{"capabilities":{"max_msg_fds":"of no interest","max_data_xfer_size":8192}}`+"\x00")))
	r.receive()
	<-r.ready
	require.Equal(t, Capabilities{MaxTransfer: 8192, MaxDMAMaps: 65535}, r.conn.Peer())
}

func TestVersionRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"another major":     message1(CmdVersion, 0, []byte{1, 0, 0, 0}),
		"too short":         message1(CmdVersion, 0, []byte{0, 0}),
		"not JSON":          message1(CmdVersion, 0, versionPayload(0, "{]\x00")),
		"not an object":     message1(CmdVersion, 0, versionPayload(0, "[]\x00")),
		"not terminated":    message1(CmdVersion, 0, versionPayload(0, "{}")),
		"negative limit":    message1(CmdVersion, 0, versionPayload(0, `{"capabilities":{"max_dma_maps":-1}}`+"\x00")),
		"transfers of 1":    message1(CmdVersion, 0, versionPayload(0, `{"capabilities":{"max_data_xfer_size":1}}`+"\x00")),
		"another command":   message1(CmdReset, 0, nil),
		"a reply":           message1(CmdVersion, FlagReply, versionPayload(0, "")),
		"a mountain":        message1(CmdVersion, 0, make([]byte, 65<<10)),
		"half a header":     message1(CmdVersion, 0, nil)[:7],
		"half a payload":    message1(CmdVersion, 0, versionPayload(0, "{}\x00"))[:18],
		"nothing, and gone": {},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{})
			r.send(b)
			require.NoError(t, r.sock.CloseWrite())
			require.ErrorContains(t, r.dropped(), "version handshake")
		})
	}
}

func TestVersionAgainIsRefused(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	r.refused(22, message1(CmdVersion, 0, versionPayload(0, "")))
}

func TestHandshakeEnds(t *testing.T) {
	t.Run("in time", func(t *testing.T) {
		r := newRig(t, Options{HandshakeTimeout: 20 * time.Millisecond})
		require.ErrorContains(t, r.dropped(), "timeout")
	})
	t.Run("with its context", func(t *testing.T) {
		r := newRig(t, Options{})
		time.AfterFunc(10*time.Millisecond, r.stop)
		require.ErrorIs(t, r.dropped(), context.Canceled)
	})
}

func TestClientWithoutJSON(t *testing.T) {
	c := newRig(t, Options{}).client(ClientOptions{NoJSON: true})
	require.Equal(t, defaultCapabilities(), c.Peer())
	info, err := c.Info()
	require.NoError(t, err)
	require.Equal(t, DeviceInfo{DevicePCI | DeviceReset, 9, 5}, info)
}
