package vfiouser

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

// acceptRetry is how long a slot waits when it could not accept a client.
const acceptRetry = 100 * time.Millisecond

var background = context.Background()

// Options of a slot. The zero value is ready for use.
type Options struct {
	Log *slog.Logger // nil means nothing is logged
}

// Slot is a place for one function, at a Unix socket.
type Slot struct {
	path string
	l    *net.UnixListener
	file os.FileInfo // the socket as we made it
	log  *slog.Logger
}

// Listen makes a slot at path. Its errors are ErrPathLength, ErrTaken and
// ErrPath. The slot must be closed.
func Listen(path string, o Options) (*Slot, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	l, err := listen(path)
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	file, err := os.Lstat(path)
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("%s: %w: %w", path, ErrPath, err)
	}
	return &Slot{path: path, l: l, file: file, log: o.Log.With("slot", path)}, nil
}

// Path returns where the slot is.
func (s *Slot) Path() string { return s.path }

// Close takes the slot away. Serve must have returned. Clients that wait for
// their turn read an end of file.
func (s *Slot) Close() error {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.file) {
		_ = os.Remove(s.path)
	}
	vfiouser.TurnAway(s.l) // now nobody can come any more
	if err := s.l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close slot %s: %w", s.path, err)
	}
	return nil
}

// Serve puts fn in the slot, for one client after the other, until ctx ends;
// then it returns nil once the last one is detached. An error of a client ends
// its session only; an error means that the slot cannot go on, or that the
// last client's data could not be flushed.
func (s *Slot) Serve(ctx context.Context, fn epc.Function) error {
	stop := context.AfterFunc(ctx, func() { _ = s.l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		sock, err := s.l.AcceptUnix()
		switch {
		case ctx.Err() != nil && err != nil:
			return nil
		case passing(err):
			s.log.Warn("a client could not be accepted", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptRetry):
			}
			continue
		case err != nil:
			return fmt.Errorf("slot %s: %w", s.path, err)
		}
		err = s.serve(ctx, sock, fn)
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			s.log.Error("the disk could not be flushed after a client had left", "err", err)
		}
	}
}

// passing says whether an error of accept is about one client, or about a want
// of resources that may end.
func passing(err error) bool {
	for _, errno := range []error{
		syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// serve runs one session. Its error is the function's: what the client did wrong
// is logged here.
func (s *Slot) serve(ctx context.Context, sock *net.UnixConn, fn epc.Function) error {
	conn, err := vfiouser.Accept(ctx, sock, vfiouser.Options{Logger: s.log})
	if err != nil {
		s.log.Info("a client came and went", "err", err)
		return nil
	}
	session, err := newSession(fn, conn, s.log)
	if err != nil {
		s.log.Error("a client cannot be served", "err", err)
		_ = conn.Close()
		return nil
	}
	s.log.Info("a client is here")
	err = session.serve(ctx)
	switch {
	case err == nil:
		s.log.Info("the client has left")
	case ctx.Err() == nil:
		s.log.Warn("the client is gone", "err", err)
	}
	// What is in flight may need the client's memory, so the connection goes last.
	err = session.end()
	if closing := conn.Close(); closing != nil {
		s.log.Warn("connection not closed cleanly", "err", closing)
	}
	session.release()
	return err
}
