package vfiouser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed reports an operation on a connection that has ended.
var ErrClosed = errors.New("connection closed")

// writeTimeout bounds how long a peer may leave its socket unread while there
// is something to tell it.
const writeTimeout = 5 * time.Second

// transport carries whole messages over a connected UNIX stream socket. One
// goroutine may receive; any may send.
type transport struct {
	sock *net.UnixConn
	oob  []byte // for descriptors, used by the receiver
	head [HeaderSize]byte

	sendMu  sync.Mutex
	sendBuf []byte

	failOnce sync.Once
	failed   error
	dead     chan struct{} // closed by fail
}

func newTransport(sock *net.UnixConn) *transport {
	return &transport{
		sock:    sock,
		oob:     make([]byte, unix.CmsgSpace(MaxFDs*4)),
		sendBuf: make([]byte, HeaderSize+4096+regionAccessSize),
		dead:    make(chan struct{}),
	}
}

// fail ends the connection for all who use it. The first reason stays.
func (t *transport) fail(err error) {
	t.failOnce.Do(func() {
		t.failed = err
		close(t.dead)
		t.interrupt()
	})
}

// interrupt ends all waiting for the socket.
func (t *transport) interrupt() { _ = t.sock.SetDeadline(time.Unix(1, 0)) }

// receiveHeader waits for the next message and returns its header and its
// descriptors, which the caller owns. io.EOF: the peer closed the connection
// between two messages.
func (t *transport) receiveHeader() (h Header, fds []int, err error) {
	for got := 0; got < HeaderSize; {
		// Never more than the header: descriptors that arrive with it are then
		// this message's. Those sent with a payload byte alone are dropped by
		// the kernel, because payloads are read without room for any.
		n, oobn, flags, _, err := t.sock.ReadMsgUnix(t.head[got:], t.oob)
		if oobn > 0 {
			more, perr := parseFDs(t.oob[:oobn])
			fds = append(fds, more...)
			err = errors.Join(err, perr)
		}
		if flags&unix.MSG_CTRUNC != 0 || len(fds) > MaxFDs {
			err = errors.Join(err, fmt.Errorf("%w: more than %d descriptors", ErrMalformed, MaxFDs))
		}
		got += n
		if err == io.EOF && got > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			closeFDs(fds)
			return h, nil, err
		}
	}
	h = ParseHeader(t.head[:])
	if err := h.check(); err != nil {
		closeFDs(fds)
		return h, nil, err
	}
	return h, fds, nil
}

// receivePayload fills b with the next bytes of the current message.
func (t *transport) receivePayload(b []byte) error {
	_, err := io.ReadFull(t.sock, b)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// skip passes over n bytes of the current message.
func (t *transport) skip(n int) error {
	var waste [4096]byte
	for n > 0 {
		k := min(n, len(waste))
		if err := t.receivePayload(waste[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// send sends one message, whose payload of n bytes fill writes in place. A
// failure is final: part of the message may be out.
func (t *transport) send(h Header, n int, fds []int, fill func(payload []byte)) error {
	t.sendMu.Lock()
	defer t.sendMu.Unlock()
	size := HeaderSize + n
	if cap(t.sendBuf) < size {
		t.sendBuf = make([]byte, size)
	}
	b := t.sendBuf[:size]
	h.Size = uint32(size)
	h.Put(b)
	if fill != nil {
		fill(b[HeaderSize:])
	}
	return t.write(b, fds)
}

func (t *transport) write(b []byte, fds []int) error {
	select {
	case <-t.dead:
		return ErrClosed
	default:
	}
	_ = t.sock.SetWriteDeadline(time.Now().Add(writeTimeout))
	var err error
	if len(fds) > 0 {
		var n int
		n, _, err = t.sock.WriteMsgUnix(b, unix.UnixRights(fds...), nil)
		b = b[n:]
	}
	if err == nil && len(b) > 0 {
		_, err = t.sock.Write(b)
	}
	if err != nil {
		t.fail(fmt.Errorf("send: %w", err))
	}
	return err
}

// close ends the connection so that the peer reads an orderly end of file. A
// socket that is closed with unread bytes in it gives the peer ECONNRESET
// instead, which makes QEMU abort. So the socket is first shut down both ways,
// after which nothing more can arrive, and then read empty. The receiver must
// have stopped.
func (t *transport) close() error {
	t.fail(ErrClosed)
	if raw, err := t.sock.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { hangUp(int(fd)) })
	}
	return t.sock.Close()
}

// hangUp leaves a connected socket such that it can be closed.
func hangUp(fd int) {
	_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	drain(fd)
}

// TurnAway ends, in an orderly way, all connections that wait to be accepted at
// l. They would read a connection reset if l were closed under them.
func TurnAway(l *net.UnixListener) {
	raw, err := l.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(lfd uintptr) {
		for {
			fd, _, err := unix.Accept4(int(lfd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			switch err {
			case nil:
				hangUp(fd)
				_ = unix.Close(fd)
			case unix.EINTR, unix.ECONNABORTED:
			default: // there are no more, or none can be had
				return
			}
		}
	})
}

func drain(fd int) {
	waste := make([]byte, 64<<10)
	for {
		// Without room for control data the kernel drops descriptors.
		n, err := unix.Read(fd, waste)
		if n <= 0 && err != unix.EINTR {
			return
		}
	}
}

// parseFDs returns the descriptors in control data; the caller owns them.
func parseFDs(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: control data: %v", ErrMalformed, err)
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		more, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeFDs(fds)
			return nil, fmt.Errorf("%w: descriptors: %v", ErrMalformed, err)
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
