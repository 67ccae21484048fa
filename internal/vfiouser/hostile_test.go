package vfiouser

import (
	"context"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestLostFramingEndsTheConnection(t *testing.T) {
	for name, h := range map[string]Header{
		"too small":    {Command: CmdGetInfo, Size: 15},
		"empty":        {Command: CmdGetInfo, Size: 0},
		"too large":    {Command: CmdRegionWrite, Size: MaxMessage + 1},
		"enormous":     {Command: CmdRegionWrite, Size: ^uint32(0)},
		"unknown type": {Command: CmdGetInfo, Size: 32, Flags: 5},
		"large reply":  {Command: CmdDMARead, Size: ^uint32(0), Flags: FlagReply},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{})
			r.raw()
			r.sendFDs(encoded(HeaderSize, h.Put), eventfd(t))
			require.ErrorIs(t, r.dropped(), ErrMalformed)
		})
	}
}

func TestTooManyDescriptors(t *testing.T) {
	fds := make([]int, 253) // what the kernel lets through
	for i := range fds {
		fds[i] = eventfd(t)
	}
	set := IRQSet{Flags: triggerEventfd, Index: IRQMSIX, Count: MaxFDs}
	b := message1(CmdSetIRQs, 0, encoded(irqSetSize, set.put))

	r := newRig(t, Options{})
	r.raw()
	r.sendFDs(b, fds[:MaxFDs]...)
	h, _ := r.receive()
	require.Equal(t, FlagReply, h.Flags, "as many as agreed are fine")
	for _, n := range []int{MaxFDs + 1, 253} {
		r := newRig(t, Options{})
		r.raw()
		r.sendFDs(b, fds[:n]...)
		require.ErrorIs(t, r.dropped(), ErrMalformed)
	}

	t.Run("in pieces of a header", func(t *testing.T) {
		r := newRig(t, Options{})
		r.raw()
		r.sendFDs(b[:5], fds[:MaxFDs]...)
		r.sendFDs(b[5:6], fds[:1]...)
		require.ErrorIs(t, r.dropped(), ErrMalformed)
	})
	t.Run("with a payload", func(t *testing.T) {
		r := newRig(t, Options{})
		r.raw()
		r.sendFDs(b[:HeaderSize], fds[0])
		r.sendFDs(b[HeaderSize:], fds[1:MaxFDs]...)
		h, _ := r.receive()
		require.Equal(t, uint32(syscall.EINVAL), h.Errno, "one for sixteen interrupts")
		r.alive()
	})
}

// script is a session with every kind of message in it.
func script() []byte {
	var b []byte
	for _, m := range [][]byte{
		message1(CmdVersion, 0, versionPayload(0, qemuVersion+"\x00")),
		dmaMap(DMAMap{3, 0, 0x1000, 0x1000}),
		message1(CmdGetInfo, 0, encoded(deviceInfoSize, DeviceInfo{}.put)),
		regionInfo(0, 32),
		message1(CmdGetIRQInfo, 0, encoded(irqInfoSize, IRQInfo{}.put)),
		message1(CmdSetIRQs, 0, encoded(irqSetSize, IRQSet{Flags: triggerNone, Index: IRQMSIX}.put)),
		access(CmdRegionRead, 0, 0, 7, 256),
		access(CmdRegionWrite, FlagNoReply, 0, 0, 4, 1, 2, 3, 4),
		message1(CmdReset, 0, nil),
		dmaUnmap(DMAUnmap{0, 0x1000, 0x1000}),
	} {
		b = append(b, m...)
	}
	return b
}

func TestDeathAtEveryByte(t *testing.T) {
	whole := script()
	for n := range len(whole) + 1 {
		for _, fds := range [][]int{nil, {0, 1}} {
			r := newRig(t, Options{})
			if fds == nil || n == 0 {
				r.send(whole[:n])
			} else {
				r.sendFDs(whole[:n], fds...)
			}
			r.sock.Close()
			r.dropped()
		}
	}
}

// A client that sends without end and never reads is dropped, and its commands
// do not pile up meanwhile.
func TestFloodWithoutReading(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the write timeout")
	}
	r := newRig(t, Options{})
	r.raw()
	go func() {
		b := access(CmdRegionRead, 0, 0, 2, MaxTransfer)
		for {
			if _, err := r.sock.Write(b); err != nil {
				return
			}
		}
	}()
	select {
	case err := <-r.served:
		require.ErrorContains(t, err, "send")
	case <-time.After(4 * writeTimeout):
		t.Fatal("still served")
	}
}

func TestFloodDoesNotKeepServeFromEnding(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	go func() {
		b := access(CmdRegionWrite, FlagNoReply, 0, 0, 4, 1, 2, 3, 4)
		for {
			if _, err := r.sock.Write(b); err != nil {
				return
			}
		}
	}()
	time.Sleep(20 * time.Millisecond)
	r.stop()
	require.ErrorIs(t, r.dropped(), context.Canceled)
}

// However the server ends, the client must read an end of file: QEMU aborts on
// a connection reset, which is what unread bytes in a closed socket cause.
func TestClientReadsAnOrderlyEnd(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"planned": func(r *rig) { r.stop() },
		"lost framing": func(r *rig) {
			r.send(make([]byte, HeaderSize))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{})
			busy, block := make(chan struct{}), make(chan struct{})
			r.dev.onWrite = func(uint64) { close(busy); <-block }
			r.raw()
			r.send(access(CmdRegionWrite, FlagNoReply, 0, 0, 1, 1))
			<-busy
			end(r)
			for range 20 { // left unread while the device is busy
				r.sendFDs(message1(CmdReset, FlagNoReply, make([]byte, 1000)), eventfd(t))
			}
			close(block)
			r.dropped()
			for {
				_, err := r.sock.Read(make([]byte, 4096))
				if err != nil {
					require.Equal(t, io.EOF, err)
					break
				}
			}
			_, err := r.sock.Write([]byte{0})
			require.ErrorIs(t, err, unix.EPIPE)
		})
	}
}

// FuzzSession feeds a server with bytes.
func FuzzSession(f *testing.F) {
	f.Add(script(), uint8(0))
	f.Add(script()[:200], uint8(3))
	version := message1(CmdVersion, 0, versionPayload(0, ""))
	f.Add(append(version, access(CmdRegionWrite, 0, 0, 0, 4, 1, 2, 3, 4)...), uint8(1))
	f.Add(append(version, access(CmdRegionRead, FlagReply, 0, 0, 4, 1, 2, 3, 4)...), uint8(0))
	set := IRQSet{Flags: triggerEventfd, Index: IRQMSIX, Count: 2}
	f.Add(append(message1(CmdVersion, 0, versionPayload(0, "")), message1(CmdSetIRQs, 0, encoded(irqSetSize, set.put))...), uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, fds uint8) {
		r := newRig(t, Options{HandshakeTimeout: time.Second})
		go io.Copy(io.Discard, r.sock)
		if len(b) > 0 {
			_, _, _ = r.sock.WriteMsgUnix(b, unix.UnixRights(make([]int, fds%20)...), nil)
		}
		_ = r.sock.CloseWrite()
		r.dropped()
	})
}
