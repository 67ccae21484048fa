package main

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk/disktest"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"github.com/vblk-ep/vblk-ep/internal/rc"
	"github.com/vblk-ep/vblk-ep/internal/vfiouser"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
	"github.com/vblk-ep/vblk-ep/virtio/virtiopci"
	"github.com/vblk-ep/vblk-ep/vring/vringtest"
)

const killSectors = 2048

// The server is killed at any moment, under load, and started again on the same disk
// and the same socket. Each write that was reported done is on the disk: what dies
// with the process is only what was under way.
func TestKilledServerLosesNothing(t *testing.T) {
	program := buildProgram(t)
	kills := 12
	if testing.Short() {
		kills = 3
	}
	loop := func(o blktest.LoopOptions) func(t *testing.T) string {
		return func(t *testing.T) string { return blktest.Loop(t, newImage(t, killSectors*disktest.SectorSize), o) }
	}
	for _, c := range []struct {
		name        string
		path        func(t *testing.T) string
		disk, flags string
	}{
		{"file", func(t *testing.T) string { return newImage(t, killSectors*disktest.SectorSize) }, "", ""},
		{"file trap-free", func(t *testing.T) string { return newImage(t, killSectors*disktest.SectorSize) }, "", ",trap-free"},
		{"4Kn trap-free plain", loop(blktest.LoopOptions{BlockSize: 4096}), ",block-size=512", ",trap-free,doorbell=16"},
		{"4Kn packed", loop(blktest.LoopOptions{BlockSize: 4096}), ",block-size=512,ring=packed", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path(t)
			socket := filepath.Join(t.TempDir(), "s")
			args := []string{"--disk", path + c.disk, "--epc", "vfio-user:" + socket + c.flags}
			if c.name == "4Kn trap-free plain" {
				args = append(args, "--io", "plain")
			}
			ledger := disktest.NewLedger(killSectors)
			done := 0
			for range kills {
				p, _ := startServer(t, program, args...)
				done += underLoad(t, ledger, socket, func() {
					_ = p.Process.Signal(unix.SIGKILL)
					_ = p.Wait()
				})
				require.Equal(t, unix.SIGKILL, p.ProcessState.Sys().(syscall.WaitStatus).Signal())
				require.Empty(t, p.errOut.String())
				// What the kernel still does for the dead is over when the disk is free.
				require.Eventually(t, func() bool {
					code, _, _ := cli(append([]string{"check"}, args...)...)
					return code == exitOK
				}, 10*time.Second, time.Millisecond)
				next, _ := startServer(t, program, args...)
				content, err := os.ReadFile(path)
				require.NoError(t, err)
				require.NoError(t, ledger.Restart(content))
				require.NoError(t, next.Process.Signal(unix.SIGTERM))
				require.NoError(t, next.Wait(), "stderr: %s", &next.errOut)
			}
			t.Logf("%d writes were done", done)
			require.Greater(t, done, 10*kills)
		})
	}
}

// underLoad drives the device at the socket, kills its server in the middle of it,
// and returns how many writes were done.
func underLoad(t *testing.T, ledger *disktest.Ledger, socket string, kill func()) (writes int) {
	const depth, most = 24, 64
	mem, err := vringtest.NewMemory(vringtest.Range{Base: 0x10_0000, Size: 8 << 20})
	require.NoError(t, err)
	defer func() { require.NoError(t, mem.Close()) }()
	bus, err := rc.DialVFIOUser(context.Background(), socket, vfiouser.ClientOptions{})
	require.NoError(t, err)
	defer bus.Close() // the other end is dead
	dev, err := rc.Open(bus)
	require.NoError(t, err)
	defer dev.Close()
	require.NoError(t, rc.MapMemory(bus, mem))
	all := virtio.Features{^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0)}
	require.NoError(t, dev.Negotiate(all.Without(virtio.NotificationData)))
	q, err := rc.NewQueue(dev, mem, rc.QueueConfig{Size: 128, Vector: virtiopci.NoVector, Indirect: 4})
	require.NoError(t, err)
	idle, err := q.NewRequests(depth, most*disktest.SectorSize)
	require.NoError(t, err)
	require.NoError(t, dev.Start())

	entries := make([]*disktest.Entry, depth)
	marks := make([]disktest.Mark, depth)
	collect := func() {
		done, err := q.Poll(nil)
		require.NoError(t, err)
		for _, r := range done {
			require.Equal(t, virtioblk.StatusOK, r.Status)
			switch r.Type {
			case virtioblk.TypeOut:
				ledger.Done(entries[r.Tag], true)
				writes++
			case virtioblk.TypeIn:
				require.NoError(t, ledger.Read(marks[r.Tag], r.Data()[:r.Len]))
			}
			idle = append(idle, r)
		}
	}
	submit := func() error {
		r := idle[len(idle)-1]
		n := 1 + rand.IntN(most)
		at := rand.IntN(killSectors - n)
		r.Sector, r.Len = uint64(at), n*disktest.SectorSize
		switch kind := rand.IntN(10); {
		case kind < 6:
			r.Type, entries[r.Tag] = virtioblk.TypeOut, ledger.Write(at, r.Data()[:r.Len])
		case kind < 9 || len(idle) < depth/2:
			r.Type, marks[r.Tag] = virtioblk.TypeIn, ledger.Now(at, n)
		default:
			r.Type, r.Len, r.Sector = virtioblk.TypeFlush, 0, 0
		}
		if err := q.Submit(r); err != nil {
			return err
		}
		idle = idle[:len(idle)-1]
		return q.Kick() // fails once the other end is dead
	}

	dead := make(chan struct{})
	go func() {
		defer close(dead)
		time.Sleep(time.Duration(30+rand.IntN(300)) * time.Millisecond)
		kill()
	}()
	defer func() { <-dead }()
	for alive := true; alive; {
		select {
		case <-dead:
			alive = false
		default:
			if len(idle) > 0 {
				_ = submit()
			}
		}
		collect()
	}
	collect() // what was reported at the last moment counts, too
	return writes
}
