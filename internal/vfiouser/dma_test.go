package vfiouser

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// hostMemory is a Host of plain bytes from address 0 on.
type hostMemory struct {
	mu       sync.Mutex
	b        []byte
	messages int
}

func (h *hostMemory) see() *hostMemory {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h
}

func (h *hostMemory) at(addr uint64, n int) ([]byte, error) {
	h.messages++
	if addr > uint64(len(h.b)) || uint64(n) > uint64(len(h.b))-addr {
		return nil, fmt.Errorf("no memory at %#x: %w", addr, syscall.EFAULT)
	}
	return h.b[addr:][:n], nil
}

func (h *hostMemory) ReadDMA(p []byte, addr uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	b, err := h.at(addr, len(p))
	copy(p, b)
	return err
}

func (h *hostMemory) WriteDMA(p []byte, addr uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	b, err := h.at(addr, len(p))
	copy(b, p)
	return err
}

func TestDMAInBothLayouts(t *testing.T) {
	for name, layout := range map[string]DMALayout{"specification": DMALayoutSpec, "32-bit count": DMALayout32} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{})
			host := &hostMemory{b: make([]byte, 4<<20)}
			r.client(ClientOptions{Host: host, Layout: layout})
			for _, n := range []int{1, 2, 3, 4, 8, 4095, MaxTransfer, MaxTransfer + 1, 3<<20 + 5} {
				want, got := make([]byte, n), make([]byte, n)
				rand.Read(want)
				require.NoError(t, r.conn.WriteDMA(want, 17))
				require.Equal(t, want, host.see().b[17:17+n])
				require.Zero(t, host.see().b[17+n], "and not a byte more")
				require.NoError(t, r.conn.ReadDMA(got, 17))
				require.Equal(t, want, got)
			}
			require.NoError(t, r.conn.ReadDMA(nil, 0))
			require.ErrorIs(t, r.conn.ReadDMA(make([]byte, 4), 4<<20), syscall.EFAULT)
			require.ErrorIs(t, r.conn.WriteDMA(make([]byte, 4), ^uint64(0)), syscall.EFAULT)
		})
	}
}

func TestDMAKeepsToThePeersLimit(t *testing.T) {
	r := newRig(t, Options{})
	r.send(message1(CmdVersion, 0, versionPayload(0, `{"capabilities":{"max_data_xfer_size":4096}}`+"\x00")))
	r.receive()
	<-r.ready
	done := make(chan error, 1)
	go func() { done <- r.conn.ReadDMA(make([]byte, 10000), 0x1000) }()
	probe, _ := r.receive()
	probe.Flags, probe.Errno = FlagReply|FlagError, uint32(syscall.E2BIG)
	r.send(encoded(HeaderSize, Header{probe.ID, CmdDMARead, HeaderSize, probe.Flags, probe.Errno}.Put))
	for i, want := range []uint64{4096, 4096, 10000 - 2*4096} {
		h, payload := r.receive()
		addr, count, err := DMALayoutSpec.parse(payload)
		require.NoError(t, err)
		require.Equal(t, want, count)
		require.Equal(t, 0x1000+uint64(i)*4096, addr)
		b := message1(CmdDMARead, FlagReply, make([]byte, 16+count))
		Header{h.ID, CmdDMARead, uint32(len(b)), FlagReply, 0}.Put(b)
		DMALayoutSpec.put(b[HeaderSize:], addr, count)
		r.send(b)
	}
	require.NoError(t, <-done)
}

func TestDMARefusedByTheClient(t *testing.T) {
	r := newRig(t, Options{})
	r.client(ClientOptions{})
	require.ErrorIs(t, r.conn.ReadDMA(make([]byte, 4), 0), syscall.ENODEV)
	require.ErrorIs(t, r.conn.WriteDMA(make([]byte, 4), 0), syscall.ENODEV)
}

// A client that refuses everything for now says nothing about its layout.
func TestDMALayoutIsLearntWhenTheClientIsReady(t *testing.T) {
	r := newRig(t, Options{})
	r.raw()
	done := make(chan error, 1)
	go func() { done <- r.conn.ReadDMA(make([]byte, 4), 0) }()
	for range 2 { // the probe, and what it was for
		h, _ := r.receive()
		r.send(encoded(HeaderSize, Header{h.ID, h.Command, HeaderSize, FlagReply | FlagError, uint32(syscall.ENODEV)}.Put))
	}
	require.ErrorIs(t, <-done, syscall.ENODEV)
	require.Equal(t, dmaLayoutUnknown, DMALayout(r.conn.dmaLayout.Load()))
}

// A command that waits for DMA must not keep the answer from being received.
func TestDMAInsideACommand(t *testing.T) {
	r := newRig(t, Options{})
	host := &hostMemory{b: []byte("host memory")}
	got := make([]byte, 4)
	r.dev.onWrite = func(uint64) { require.NoError(t, r.conn.ReadDMA(got, 0)) }
	c := r.client(ClientOptions{Host: host})
	for range queueLength / 2 {
		require.NoError(t, c.PostRegion(0, 0, []byte{1}))
	}
	require.NoError(t, c.WriteRegion(0, 0, []byte{1}))
	require.Equal(t, "host", string(got))
	require.Equal(t, queueLength/2+1, host.see().messages)
}

func TestDMAFromManyGoroutines(t *testing.T) {
	r := newRig(t, Options{})
	host := &hostMemory{b: make([]byte, 1<<20)}
	r.client(ClientOptions{Host: host})
	var wg sync.WaitGroup
	for i := range 2 * dmaInFlight {
		wg.Go(func() {
			want, got := make([]byte, 1000), make([]byte, 1000)
			rand.Read(want)
			for range 10 {
				if err := errors.Join(
					r.conn.WriteDMA(want, uint64(i*1000)), r.conn.ReadDMA(got, uint64(i*1000)),
				); err != nil || string(got) != string(want) {
					t.Errorf("transfer %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
}

// reply answers the next DMA message with a payload.
func (r *rig) reply(flags uint32, payload []byte) Header {
	h, _ := r.receive()
	b := message1(h.Command, FlagReply|flags, payload)
	Header{h.ID, h.Command, uint32(len(b)), FlagReply | flags, uint32(syscall.E2BIG)}.Put(b)
	r.send(b)
	return h
}

func TestDMAWithAHostileClient(t *testing.T) {
	read := func(r *rig) chan error {
		done := make(chan error, 1)
		go func() { done <- r.conn.ReadDMA(make([]byte, 8), 0x1000) }()
		return done
	}
	good := func() []byte { return encoded(24, func(b []byte) { DMALayoutSpec.put(b, 0x1000, 8) }) }

	t.Run("no answer", func(t *testing.T) {
		r := newRig(t, Options{DMATimeout: 20 * time.Millisecond})
		r.raw()
		require.ErrorIs(t, <-read(r), ErrTimeout)
		h, _ := r.receive()
		// The answer comes too late, and then once more.
		for range 2 {
			r.send(encoded(HeaderSize, Header{h.ID, h.Command, HeaderSize, FlagReply | FlagError, 5}.Put))
		}
		r.alive()
		// The next one is heard.
		done := read(r)
		r.reply(FlagError, nil)
		r.reply(0, good())
		require.NoError(t, <-done)
	})
	t.Run("wrong answers", func(t *testing.T) {
		r := newRig(t, Options{})
		r.raw()
		done := read(r)
		r.reply(FlagError, nil) // to the probe
		r.reply(0, good()[:23])
		require.ErrorIs(t, <-done, ErrMalformed)

		short := good()
		short[8] = 7
		done = read(r)
		r.reply(0, short)
		require.ErrorIs(t, <-done, ErrMalformed)

		done = read(r)
		r.reply(0, nil)
		require.ErrorIs(t, <-done, ErrMalformed)

		done = read(r)
		r.reply(0, append(good(), make([]byte, 5000)...))
		require.NoError(t, <-done, "longer than needed")

		// An answer to another command than was asked.
		done = read(r)
		h, _ := r.receive()
		r.send(encoded(HeaderSize, Header{h.ID, CmdDMAWrite, HeaderSize, FlagReply, 0}.Put))
		r.alive()
		b := message1(CmdDMARead, FlagReply, good())
		Header{h.ID, CmdDMARead, uint32(len(b)), FlagReply, 0}.Put(b)
		r.send(b)
		require.NoError(t, <-done)
	})
	t.Run("answers out of nowhere", func(t *testing.T) {
		r := newRig(t, Options{})
		r.raw()
		for id := range 100 {
			b := message1(CmdDMARead, FlagReply, make([]byte, 5000))
			Header{uint16(id * 997), CmdDMARead, uint32(len(b)), FlagReply, 0}.Put(b)
			r.sendFDs(b, eventfd(t))
		}
		r.alive()
	})
	t.Run("death", func(t *testing.T) {
		r := newRig(t, Options{})
		r.raw()
		done := read(r)
		r.receive()
		r.sock.Close()
		require.ErrorIs(t, <-done, ErrClosed)
	})
	t.Run("all slots taken", func(t *testing.T) {
		r := newRig(t, Options{DMATimeout: 50 * time.Millisecond})
		r.raw()
		var wg sync.WaitGroup
		for range 3 * dmaInFlight {
			wg.Go(func() {
				if err := r.conn.ReadDMA(make([]byte, 8), 0); err == nil {
					t.Error("nobody answered, but data came")
				}
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		go func() { // someone must read what is asked
			b := make([]byte, 4096)
			for {
				if _, err := r.sock.Read(b); err != nil {
					return
				}
			}
		}()
		time.Sleep(100 * time.Millisecond)
		r.stop()
		<-r.served
		<-done
	})
}

// After Serve has ended because of its context, what is in flight may end, and
// the client's commands are refused rather than left waiting.
func TestDMAOutlivesServe(t *testing.T) {
	dev, layout := newToy()
	ours, theirs := sockets(t)
	host := &hostMemory{b: make([]byte, 100)}
	accepted := make(chan *Conn, 1)
	go func() {
		conn, _ := Accept(context.Background(), ours, Options{})
		accepted <- conn
	}()
	client, err := NewClient(theirs, ClientOptions{Host: host})
	require.NoError(t, err)
	conn := <-accepted
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- conn.Serve(ctx, layout, dev) }()
	require.NoError(t, client.Reset())
	cancel()
	require.ErrorIs(t, <-served, context.Canceled)

	require.NoError(t, conn.WriteDMA([]byte("late"), 3))
	require.Equal(t, "late", string(host.see().b[3:7]))
	require.ErrorIs(t, client.Reset(), syscall.ESHUTDOWN)
	require.Equal(t, 1, dev.see().resets)

	require.NoError(t, conn.Close())
	require.ErrorIs(t, conn.ReadDMA(make([]byte, 1), 0), ErrClosed)
	<-client.Done()
	require.NoError(t, client.Close())
}
