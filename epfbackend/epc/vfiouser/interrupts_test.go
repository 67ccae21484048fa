package vfiouser

import (
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
)

const (
	triggerEventfd = vfiouser.IRQDataEventfd | vfiouser.IRQActionTrigger
	triggerNone    = vfiouser.IRQDataNone | vfiouser.IRQActionTrigger
	unmask         = vfiouser.IRQDataNone | vfiouser.IRQActionUnmask
	mask           = vfiouser.IRQDataNone | vfiouser.IRQActionMask
)

func msix(flags, start uint32, fds ...int) vfiouser.IRQSet {
	return vfiouser.IRQSet{Flags: flags, Index: vfiouser.IRQMSIX, Start: start, Count: uint32(len(fds)), FDs: fds}
}

func TestMSIX(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	ctl := r.fn.controller()
	a, b, d := newFD(t), newFD(t), newFD(t)

	require.NoError(t, ctl.RaiseMSIX(5), "not set up")
	require.NoError(t, ctl.RaiseMSIX(4000), "not there")
	// QEMU's first message sets nothing up.
	require.NoError(t, c.SetIRQs(vfiouser.IRQSet{Flags: triggerEventfd, Index: vfiouser.IRQMSIX, Count: 3}))
	require.NoError(t, c.SetIRQs(msix(triggerEventfd, 5, a, b)))
	require.NoError(t, ctl.RaiseMSIX(5))
	require.NoError(t, ctl.RaiseMSIX(5))
	require.NoError(t, ctl.RaiseMSIX(6))
	require.Equal(t, [3]uint64{2, 1, 0}, [3]uint64{count(a), count(b), count(d)})

	require.NoError(t, c.SetIRQs(msix(triggerEventfd, 6, d)), "another one for vector 6")
	require.NoError(t, ctl.RaiseMSIX(6))
	require.Equal(t, [3]uint64{0, 0, 1}, [3]uint64{count(a), count(b), count(d)})

	// The client triggers them itself.
	loop := vfiouser.IRQSet{Flags: triggerNone, Index: vfiouser.IRQMSIX, Start: 5, Count: 2}
	require.NoError(t, c.SetIRQs(loop))
	require.Equal(t, [2]uint64{1, 1}, [2]uint64{count(a), count(d)})
	loop.Flags = vfiouser.IRQDataBool | vfiouser.IRQActionTrigger
	loop.Bools = []byte{0, 1}
	require.NoError(t, c.SetIRQs(loop))
	require.Equal(t, [2]uint64{0, 1}, [2]uint64{count(a), count(d)})

	require.NoError(t, c.SetIRQs(vfiouser.IRQSet{Flags: triggerEventfd, Index: vfiouser.IRQMSIX, Start: 5, Count: 1}), "taken away")
	require.NoError(t, ctl.RaiseMSIX(5))
	require.NoError(t, ctl.RaiseMSIX(6))
	require.Equal(t, [2]uint64{0, 1}, [2]uint64{count(a), count(d)})
	require.NoError(t, c.SetIRQs(vfiouser.IRQSet{Flags: triggerNone, Index: vfiouser.IRQMSIX}), "all taken away")
	require.NoError(t, ctl.RaiseMSIX(6))
	require.Zero(t, count(d))

	require.ErrorIs(t, c.SetIRQs(vfiouser.IRQSet{Flags: mask, Index: vfiouser.IRQMSIX, Count: 1}), syscall.ENOTSUP)
	require.NoError(t, c.SetIRQs(vfiouser.IRQSet{Flags: triggerNone, Index: vfiouser.IRQMSI}), "nothing to take away")
}

func intx(flags uint32, fds ...int) vfiouser.IRQSet {
	return vfiouser.IRQSet{Flags: flags, Index: vfiouser.IRQINTx, Count: 1, FDs: fds}
}

func TestINTxIsALevel(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	ctl := r.fn.controller()
	pin := newFD(t)
	require.NoError(t, ctl.SetINTx(true))
	require.NoError(t, c.SetIRQs(intx(triggerEventfd, pin)))
	require.Equal(t, uint64(1), count(pin), "asserted before there was an eventfd")

	require.NoError(t, ctl.SetINTx(true))
	require.Zero(t, count(pin), "told once")
	require.NoError(t, c.SetIRQs(intx(unmask)))
	require.Equal(t, uint64(1), count(pin), "still asserted")

	require.NoError(t, ctl.SetINTx(false))
	require.NoError(t, ctl.SetINTx(true))
	require.Zero(t, count(pin), "masked until the guest's end of interrupt")
	require.NoError(t, ctl.SetINTx(false))
	require.NoError(t, c.SetIRQs(intx(unmask)))
	require.Zero(t, count(pin), "no longer asserted")
	require.NoError(t, ctl.SetINTx(true))
	require.Equal(t, uint64(1), count(pin))

	require.NoError(t, ctl.SetINTx(false))
	require.NoError(t, c.SetIRQs(intx(unmask)))
	require.NoError(t, c.SetIRQs(intx(mask)))
	require.NoError(t, ctl.SetINTx(true))
	require.Zero(t, count(pin))
	require.NoError(t, c.SetIRQs(intx(unmask)))
	require.Equal(t, uint64(1), count(pin))

	require.NoError(t, c.SetIRQs(intx(triggerNone)), "the client's own trigger")
	require.Equal(t, uint64(1), count(pin))

	require.ErrorIs(t, c.SetIRQs(intx(vfiouser.IRQDataEventfd|vfiouser.IRQActionUnmask, pin)), syscall.ENOTSUP)
	require.NoError(t, c.SetIRQs(vfiouser.IRQSet{Flags: triggerNone, Index: vfiouser.IRQINTx}))
	require.NoError(t, c.SetIRQs(intx(unmask)))
	require.Zero(t, count(pin), "taken away")
}

func TestInterruptsOnlyByEventfd(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	pipe := make([]int, 2)
	require.NoError(t, unix.Pipe2(pipe, unix.O_CLOEXEC))
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	good := newFD(t)
	require.ErrorIs(t, c.SetIRQs(msix(triggerEventfd, 0, good, pipe[1], good)), syscall.EINVAL)
	require.NoError(t, r.fn.controller().RaiseMSIX(0))
	require.Zero(t, count(good), "all or none")
}

// An interrupt that is raised while its eventfd is replaced goes to the one or
// the other, and never to another file.
func TestRaiseWhileReplaced(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	ctl := r.fn.controller()
	fds := []int{newFD(t), newFD(t)}
	require.NoError(t, c.SetIRQs(msix(triggerEventfd, 0, fds[0])))
	const workers, each = 3, 2000
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				if err := ctl.RaiseMSIX(0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for i := 0; ; i++ {
		select {
		case <-done:
			require.Equal(t, uint64(workers*each), count(fds[0])+count(fds[1]), "none is lost")
			return
		default:
			require.NoError(t, c.SetIRQs(msix(triggerEventfd, 0, fds[i%2])))
		}
	}
}

func TestRaisingDoesNotAllocate(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	fd := newFD(t)
	require.NoError(t, c.SetIRQs(msix(triggerEventfd, 0, fd)))
	require.NoError(t, c.SetIRQs(intx(triggerEventfd, fd)))
	ctl := r.fn.controller()
	require.Zero(t, testing.AllocsPerRun(100, func() {
		_ = ctl.RaiseMSIX(0)
		_ = ctl.SetINTx(true)
		_ = ctl.SetINTx(false)
	}))
}

// full is the largest value of an eventfd.
var full = [8]byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func TestFullEventfd(t *testing.T) {
	r := newRig(t)
	c := r.client(vfiouser.ClientOptions{})
	fd := newFD(t)
	require.NoError(t, unix.SetNonblock(fd, false))
	_, err := unix.Write(fd, full[:])
	require.NoError(t, err)
	require.NoError(t, c.SetIRQs(msix(triggerEventfd, 0, fd)))
	require.NoError(t, r.fn.controller().RaiseMSIX(0), "as raised as can be")
	require.NoError(t, c.SetIRQs(intx(triggerEventfd, fd)))
	require.NoError(t, r.fn.controller().SetINTx(true))
}

// A client can make our writes to its eventfd wait for ever. When it is gone,
// they must not.
func TestStuckInAnEventfd(t *testing.T) {
	for name, raise := range map[string]func(r *rig, c *vfiouser.Client){
		"a worker": func(r *rig, c *vfiouser.Client) { _ = r.fn.controller().RaiseMSIX(0) },
		"the executor": func(r *rig, c *vfiouser.Client) {
			_ = c.SetIRQs(vfiouser.IRQSet{Flags: triggerNone, Index: 2, Count: 1})
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			c := r.client(vfiouser.ClientOptions{})
			fd := newFD(t)
			_, err := unix.Write(fd, full[:])
			require.NoError(t, err)
			require.NoError(t, c.SetIRQs(msix(triggerEventfd, 0, fd)))
			require.NoError(t, unix.SetNonblock(fd, false))
			stuck := make(chan struct{})
			go func() { defer close(stuck); raise(r, c) }()
			select {
			case <-stuck:
				t.Fatal("the write did not wait")
			case <-time.After(50 * time.Millisecond):
			}
			require.NoError(t, c.Close())
			<-stuck
			r.detached()
			r.client(vfiouser.ClientOptions{})
		})
	}
}
