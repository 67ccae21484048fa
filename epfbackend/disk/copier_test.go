package disk

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
)

// A disk whose requests bypass the page cache is not read or written through it when
// their memory is not aligned, nor when they are parts of its blocks. Otherwise the
// kernel finds pages beside what is written, fails the next flush for them, and may
// read what was there before.
func TestMisalignedBesideDirect(t *testing.T) {
	const pages, rounds = 250, 2
	for _, block := range []uint32{512, 4096} {
		t.Run(fmt.Sprint(block), func(t *testing.T) {
			path := blktest.Loop(t, blktest.File(t, mib), blktest.LoopOptions{BlockSize: block})
			store, err := Open(path, Options{})
			require.NoError(t, err)
			require.True(t, store.Info().Direct, store.Info().DirectWhy)
			t.Cleanup(func() { require.NoError(t, store.Close()) })

			for page := range int64(pages) {
				var errs [3]error
				var wg sync.WaitGroup
				for i := range errs {
					wg.Go(func() { errs[i] = misaligned(store, i, rounds, 4096*page) })
				}
				wg.Wait()
				require.NoError(t, errors.Join(errs[:]...))
			}
		})
	}
}

// misaligned writes and reads what is number who's of a page: a sector, or, for number
// 2, six. Number 0 has aligned memory, and flushes.
func misaligned(store Store, who, rounds int, page int64) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(bell)
	e, err := store.NewEngine(URing, 4, bell)
	if err != nil {
		return err
	}
	defer e.Close()
	mem, err := unix.Mmap(-1, 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	off, n := page+int64(512*who), 512
	if who == 2 {
		n = 6 * 512
	}
	data, back := mem[:n], mem[4096:4096+n]
	if who != 0 {
		data, back = mem[3:3+n], mem[5001:5001+n]
	}
	run := func(io *IO) error {
		e.Start(io)
		for {
			if done, _, err := e.Wait(true); err != nil || len(done) > 0 {
				if err == nil {
					err = io.Err
				}
				return err
			}
		}
	}
	for round := range rounds {
		noise(data)
		if err := run(transfer(Write, off, data)); err != nil {
			return fmt.Errorf("round %d: write: %w", round, err)
		}
		if who == 0 {
			if err := run(&IO{Op: Flush}); err != nil {
				return fmt.Errorf("round %d: flush: %w", round, err)
			}
		}
		if err := run(transfer(Read, off, back)); err != nil {
			return fmt.Errorf("round %d: read: %w", round, err)
		}
		if !bytes.Equal(data, back) {
			return fmt.Errorf("round %d: what number %d wrote is not read", round, who)
		}
	}
	return nil
}
