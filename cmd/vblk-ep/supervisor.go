package main

import (
	"log/slog"
	"net"
	"os"
	"time"
)

// What a supervisor is told (systemd's sd_notify(3)).
const (
	stateReady    = "READY=1"    // disks and slots are there
	stateStopping = "STOPPING=1" // what is in flight is finished, and disks are flushed
)

// supervisorPatience is how long a supervisor that does not listen is waited for.
const supervisorPatience = time.Second

// tellSupervisor tells whoever has started us, if they want to know. Serving does not
// depend on them.
func tellSupervisor(state string, log *slog.Logger) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_ = conn.SetWriteDeadline(time.Now().Add(supervisorPatience))
		_, err = conn.Write([]byte(state))
		conn.Close()
	}
	if err != nil {
		log.Warn("the supervisor cannot be told", "state", state, "err", err)
	}
}
