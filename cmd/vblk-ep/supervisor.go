package main

import (
	"log/slog"
	"net"
	"os"
)

// What a supervisor is told (systemd's sd_notify(3)).
const (
	stateReady    = "READY=1"    // hosts are served
	stateStopping = "STOPPING=1" // what is in flight is finished, and disks are flushed
)

// tellSupervisor tells whoever has started us, if they want to know. Serving does not
// depend on them.
func tellSupervisor(state string, log *slog.Logger) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		conn.Close()
	}
	if err != nil {
		log.Warn("the supervisor cannot be told", "state", state, "err", err)
	}
}
