package disk_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk/disktest"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
)

const (
	sector = disktest.SectorSize
	native = 4096 // block size of the disks below
	mib    = 1 << 20
)

// fourK returns a real disk with blocks of 4096 bytes, presented with blocks of 512,
// and the file that its content ends up in.
func fourK(t testing.TB, size int64, o disk.Options) (s disk.Store, path, backing string) {
	t.Helper()
	backing = blktest.File(t, size)
	path = blktest.Loop(t, backing, blktest.LoopOptions{BlockSize: native})
	o.BlockSize = sector
	s, err := disk.Open(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s, path, backing
}

// newEngine returns an engine for the goroutine of the test.
func newEngine(t testing.TB, s disk.Store, kind disk.EngineKind, depth int) disk.Engine {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(bell) })
	e, err := s.NewEngine(kind, depth, bell)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// runLoads runs n loads at once, each on an engine and a thread of its own.
func runLoads(s disk.Store, kind disk.EngineKind, n, operations int, seed uint64, load disktest.Load) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range errs {
		load := load
		load.Rand = rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
			if err != nil {
				errs[i] = err
				return
			}
			defer unix.Close(bell)
			if load.Engine, err = s.NewEngine(kind, load.Depth, bell); err == nil {
				err = errors.Join(load.Run(operations), load.Engine.Close())
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// do executes operations together.
func do(t testing.TB, e disk.Engine, ios ...*disk.IO) {
	t.Helper()
	for _, io := range ios {
		e.Start(io)
	}
	for n := 0; n < len(ios); {
		done, _, err := e.Wait(true)
		require.NoError(t, err)
		n += len(done)
	}
}

// must executes one operation that has to succeed.
func must(t testing.TB, e disk.Engine, io *disk.IO) {
	t.Helper()
	do(t, e, io)
	require.NoError(t, io.Err)
}

func transfer(op disk.Op, off int64, b []byte) *disk.IO {
	return &disk.IO{Op: op, Offset: off, Length: int64(len(b)), Iov: []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}}
}

// random returns bytes of which hardly any are zero.
func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n), byte(rand.Uint32())}).Read(b)
	return b
}

func eachEngine(t *testing.T, test func(t *testing.T, kind disk.EngineKind)) {
	for _, kind := range []disk.EngineKind{disk.URing, disk.Plain} {
		t.Run(kind.String(), func(t *testing.T) { test(t, kind) })
	}
}

func TestEmulatedGeometry(t *testing.T) {
	s, _, _ := fourK(t, mib, disk.Options{})
	i := s.Info()
	require.EqualValues(t, sector, i.LogicalBlock)
	require.EqualValues(t, native, i.PhysicalBlock)
	require.EqualValues(t, native, i.NativeBlock)
	require.EqualValues(t, native, i.MinIO)
	require.GreaterOrEqual(t, i.Discard.Granularity, uint32(native))
	require.EqualValues(t, sector, i.WriteZeroes.Granularity)
	_, err := disk.Emulate(s, 256)
	require.ErrorIs(t, err, disk.ErrSize)
	same, err := disk.Emulate(s, sector)
	require.NoError(t, err)
	require.Same(t, s, same)
	for _, depth := range []int{0, disk.MaxDepth} {
		_, err = s.NewEngine(disk.Plain, depth, -1)
		require.ErrorIs(t, err, unix.EINVAL)
	}
}

// Every range that begins and ends within a few blocks is written, zeroed, read and
// discarded, and nothing else changes.
func TestEmulatedRanges(t *testing.T) {
	eachEngine(t, func(t *testing.T, kind disk.EngineKind) {
		const size = 5 * native
		s, path, _ := fourK(t, size, disk.Options{})
		e := newEngine(t, s, kind, 4)
		want, got := random(size), make([]byte, size)
		must(t, e, transfer(disk.Write, 0, want))
		check := func(what string, off, n int) {
			require.NoError(t, s.Flush())
			outside, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, outside), "%s at %d, %d bytes", what, off, n)
		}
		for off := 0; off < 3*native; off += sector {
			for _, n := range []int{sector, native - sector, native, native + sector, 2*native - sector, 2 * native} {
				part := random(n)
				must(t, e, transfer(disk.Write, int64(off), part))
				copy(want[off:], part)
				check("write", off, n)
				clear(got)
				must(t, e, transfer(disk.Read, int64(off), got[:n]))
				require.True(t, bytes.Equal(part, got[:n]))

				must(t, e, &disk.IO{Op: disk.WriteZeroes, Offset: int64(off), Length: int64(n), Unmap: n%native == 0})
				clear(want[off : off+n])
				check("zeroes", off, n)
				must(t, e, transfer(disk.Write, 0, random(size)))
				must(t, e, transfer(disk.Read, 0, want))

				must(t, e, &disk.IO{Op: disk.Discard, Offset: int64(off), Length: int64(n)})
				first, last := (off+native-1)/native*native, (off+n)/native*native
				if first < last {
					clear(want[first:last]) // as this disk does it
				}
				check("discard", off, n)
			}
		}
	})
}

// Memory in odd pieces, at odd addresses, for bytes that are not even sectors.
func TestEmulatedMemory(t *testing.T) {
	eachEngine(t, func(t *testing.T, kind disk.EngineKind) {
		const size = 64 * native
		s, _, _ := fourK(t, size, disk.Options{})
		e := newEngine(t, s, kind, 4)
		want := make([]byte, size)
		mem := random(size)
		for range 300 {
			off := rand.IntN(size - 1)
			n := 1 + rand.IntN(min(size-off, 5*native))
			io := &disk.IO{Op: disk.Write, Offset: int64(off), Length: int64(n)}
			for at := 0; at < n; {
				k := 1 + rand.IntN(n-at)
				io.Iov = append(io.Iov, unix.Iovec{Base: &mem[off+at], Len: uint64(k)})
				at += k
			}
			must(t, e, io)
			copy(want[off:], mem[off:off+n])
			got := make([]byte, n)
			must(t, e, transfer(disk.Read, int64(off), got))
			require.True(t, bytes.Equal(want[off:off+n], got))
		}
		got := make([]byte, size)
		must(t, e, transfer(disk.Read, 0, got))
		require.True(t, bytes.Equal(want, got))
	})
}

func TestEmulatedErrors(t *testing.T) {
	eachEngine(t, func(t *testing.T, kind disk.EngineKind) {
		s, _, _ := fourK(t, mib, disk.Options{})
		e := newEngine(t, s, kind, 4)
		mem := make([]byte, 8192)
		vec := func(n int) []unix.Iovec { return []unix.Iovec{{Base: &mem[0], Len: uint64(n)}} }
		gone, err := unix.Mmap(-1, 0, 8192, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
		require.NoError(t, err)
		defer unix.Munmap(gone)
		for _, c := range []struct {
			io   disk.IO
			want error
		}{
			{disk.IO{Op: disk.Read, Offset: mib - 512, Length: 1024, Iov: vec(1024)}, unix.EIO},
			{disk.IO{Op: disk.Write, Offset: mib + 512, Length: 512, Iov: vec(512)}, unix.EIO},
			{disk.IO{Op: disk.Write, Offset: -512, Length: 512, Iov: vec(512)}, unix.EIO},
			{disk.IO{Op: disk.Write, Offset: 512, Length: 1<<63 - 1, Iov: vec(512)}, unix.EIO},
			{disk.IO{Op: disk.WriteZeroes, Offset: 1<<63 - 512, Length: 512}, unix.EIO},
			{disk.IO{Op: disk.Write, Offset: 512, Length: -512}, unix.EIO},
			{disk.IO{Op: disk.Write, Offset: 512, Length: 512, Iov: vec(1024)}, unix.EINVAL},
			{disk.IO{Op: disk.Read, Offset: 512, Length: 1024, Iov: vec(512)}, unix.EINVAL},
			{disk.IO{Op: 77, Offset: 512, Length: 512}, unix.EOPNOTSUPP},
			{disk.IO{Op: disk.SecureErase, Offset: 512, Length: 4096}, unix.EINVAL},
			{disk.IO{Op: disk.SecureErase, Length: 4096}, unix.EOPNOTSUPP},
			{disk.IO{Op: disk.Read, Offset: 512}, nil},
			{disk.IO{Op: disk.Discard, Offset: 512, Length: 4096}, nil},
			{*transfer(disk.Read, 512, gone[:512:512]), unix.EFAULT},
			{*transfer(disk.Write, 512, gone[:512:512]), unix.EFAULT},
			{*transfer(disk.Write, 512, gone), unix.EFAULT},
		} {
			do(t, e, &c.io)
			require.Equal(t, c.want, c.io.Err, "%+v", c.io)
		}
		// More than the engine was made for.
		ios := make([]*disk.IO, 5)
		for i := range ios {
			ios[i] = transfer(disk.Write, 512, mem[:512])
		}
		do(t, e, ios...)
		for i, io := range ios {
			require.Equal(t, i == 4, io.Err == unix.EBUSY, "%d: %v", i, io.Err)
		}
		must(t, e, transfer(disk.Read, 512, mem))
	})
}

func TestEmulatedReadOnly(t *testing.T) {
	s, _, _ := fourK(t, mib, disk.Options{ReadOnly: true})
	e := newEngine(t, s, disk.Auto, 4)
	mem := make([]byte, 512)
	io := transfer(disk.Write, 512, mem)
	do(t, e, io)
	require.Equal(t, unix.EROFS, io.Err)
	must(t, e, transfer(disk.Read, 512, mem))
	must(t, e, &disk.IO{Op: disk.Flush})
}

// What the disk below says of any part is said of the whole, and what is written
// back is only what was read.
func TestEmulatedDiskErrors(t *testing.T) {
	for name, rule := range map[string]disktest.Rule{
		"first block not read":    {Ops: []disk.Op{disk.Read}, From: 0, To: native},
		"last block not read":     {Ops: []disk.Op{disk.Read}, From: 3 * native, To: 4 * native},
		"first block not written": {Ops: []disk.Op{disk.Write}, From: 0, To: native},
		"middle not written":      {Ops: []disk.Op{disk.Write}, From: native, To: 3 * native},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := disk.Open(blktest.File(t, mib), disk.Options{BlockSize: native})
			require.NoError(t, err)
			rule.Err = unix.EREMOTEIO
			f := disktest.Wrap(s)
			s, err = disk.Emulate(f, sector)
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, s.Close()) })
			e := newEngine(t, s, disk.Auto, 4)
			before := random(4 * native)
			must(t, e, transfer(disk.Write, 0, before))
			f.Add(rule)
			mem := random(3 * native)
			io := transfer(disk.Write, sector, mem)
			do(t, e, io)
			require.Equal(t, unix.EREMOTEIO, io.Err)
			f.Clear()
			after := make([]byte, 4*native)
			must(t, e, transfer(disk.Read, 0, after))
			require.Equal(t, before[:sector], after[:sector])
			require.Equal(t, before[sector+len(mem):], after[sector+len(mem):])
			must(t, e, io)
		})
	}
}

// Random operations from several engines at once, on few blocks: neighbours in one
// block never lose each other's data. Engines sleep on each other, too.
func TestEmulatedConcurrency(t *testing.T) {
	eachEngine(t, func(t *testing.T, kind disk.EngineKind) {
		const sectors, engines, operations = 128, 3, 2000
		s, path, _ := fourK(t, sectors*sector, disk.Options{})
		l := disktest.NewLedger(sectors)
		require.NoError(t, runLoads(s, kind, engines, operations, rand.Uint64(),
			disktest.Load{Ledger: l, Depth: 40, Unit: 1, Most: 24}))
		require.NoError(t, s.Flush())
		l.Flushed(l.Now(0, sectors))
		outside, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, l.Restart(outside))
	})
}

// An engine that ends lets go of its blocks, whatever it was doing with them.
func TestEmulatedCloseReleasesOthers(t *testing.T) {
	var faults *disktest.Faults
	s, err := disk.Open(blktest.File(t, mib), disk.Options{BlockSize: native})
	require.NoError(t, err)
	faults = disktest.Wrap(s)
	s, err = disk.Emulate(faults, sector)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	a := newEngine(t, s, disk.Auto, 40)
	b := newEngine(t, s, disk.Auto, 4)
	mem := make([]byte, sector)
	for i := range 40 { // one is under way, others wait for it, and for jobs
		a.Start(transfer(disk.Write, int64(i%8)*sector, mem))
	}
	_, _, err = a.Wait(false)
	require.NoError(t, err)
	whole := transfer(disk.Write, 0, make([]byte, native))
	b.Start(whole)
	done, _, err := b.Wait(false)
	require.NoError(t, err)
	require.Empty(t, done, "the block is taken")
	require.NoError(t, a.Close())
	require.NoError(t, a.Close(), "twice is harmless")
	done, _, err = b.Wait(true)
	require.NoError(t, err)
	require.Equal(t, []*disk.IO{whole}, waitFor(t, b, done))
	require.NoError(t, whole.Err)
}

func waitFor(t *testing.T, e disk.Engine, done []*disk.IO) []*disk.IO {
	for len(done) == 0 {
		var err error
		done, _, err = e.Wait(true)
		require.NoError(t, err)
	}
	return done
}

// Whatever the power cut interrupts, sectors that were not to be written stay, and
// what had to be stable is there.
func TestEmulatedPowerCut(t *testing.T) {
	const sectors = 64
	l := disktest.NewLedger(sectors)
	image := make([]byte, sectors*sector)
	rounds := uint64(300)
	if testing.Short() {
		rounds = 60
	}
	for seed := range rounds {
		rng := rand.New(rand.NewPCG(seed, 3))
		v := disktest.NewVolatile(image, native, seed)
		s, err := disk.Emulate(v, sector)
		require.NoError(t, err)
		v.CutAfter(rng.IntN(1500))
		require.NoError(t, runLoads(s, disk.Auto, 2, 1<<30, seed,
			disktest.Load{Ledger: l, Depth: 12, Unit: 1, Most: 20, Until: v.Dead}), "seed %d", seed)
		image = v.Image()
		require.NoError(t, l.Restart(image), "seed %d", seed)
	}
}

// What is made of whole blocks costs nothing more, and what is not allocates
// nothing either once it was done before.
func TestEmulatedAllocations(t *testing.T) {
	eachEngine(t, func(t *testing.T, kind disk.EngineKind) {
		s, _, _ := fourK(t, mib, disk.Options{})
		e := newEngine(t, s, kind, 8)
		for _, c := range []struct{ off, n int }{{0, native}, {8192, 65536}, {sector, sector}, {sector, 8 * native}} {
			mem, err := unix.Mmap(-1, 0, c.n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
			require.NoError(t, err)
			defer unix.Munmap(mem)
			ios := []*disk.IO{transfer(disk.Write, int64(c.off), mem), transfer(disk.Read, int64(c.off), mem)}
			once := func() {
				for _, io := range ios {
					e.Start(io)
				}
				for n := 0; n < len(ios); {
					done, _, err := e.Wait(true)
					if err != nil {
						t.Fatal(err)
					}
					n += len(done)
				}
			}
			for range 100 {
				once()
			}
			require.Zero(t, testing.AllocsPerRun(300, once), fmt.Sprint(c))
		}
	})
}

// Operations in an order that the fuzzer chooses, on a disk that tears what is under
// way when its power is cut.
func FuzzEmulated(f *testing.F) {
	f.Add([]byte{0, 1, 3, 1, 1, 9, 2, 7, 40, 0, 0, 64}, uint16(100))
	f.Add([]byte{3, 5, 20, 5, 4, 30, 4, 0, 0, 0, 3, 9, 0, 2, 8}, uint16(30))
	f.Add(bytes.Repeat([]byte{0, 9, 1, 1, 12, 2, 0, 8, 8}, 8), uint16(60))
	f.Fuzz(func(t *testing.T, program []byte, cut uint16) {
		const sectors = 64
		l := disktest.NewLedger(sectors)
		v := disktest.NewVolatile(make([]byte, sectors*sector), native, uint64(cut))
		v.CutAfter(int(cut))
		s, err := disk.Emulate(v, sector)
		require.NoError(t, err)
		e := newEngine(t, s, disk.Auto, 8)
		type task struct {
			entry *disktest.Entry
			mark  disktest.Mark
			mem   []byte
		}
		tasks := map[*disk.IO]task{}
		collect := func() {
			done, _, err := e.Wait(false)
			require.NoError(t, err)
			for _, io := range done {
				require.NoError(t, io.Err)
				k := tasks[io]
				delete(tasks, io)
				switch io.Op {
				case disk.Read:
					require.NoError(t, l.Read(k.mark, k.mem))
				case disk.Flush:
					l.Flushed(k.mark)
				default:
					l.Done(k.entry, io.Durable)
				}
			}
		}
		for ; len(program) >= 3; program = program[3:] {
			for len(tasks) == 8 && !v.Dead() {
				collect()
			}
			if v.Dead() {
				break
			}
			at := int(program[1]) % sectors
			n := 1 + int(program[2])%(sectors-at)
			mem := make([]byte, n*sector)
			io := transfer(disk.Read, int64(at*sector), mem)
			io.Durable = program[0]&8 != 0
			k := task{mem: mem}
			switch program[0] % 5 {
			case 0:
				io.Op, k.entry = disk.Write, l.Write(at, mem)
			case 1:
				k.mark = l.Now(at, n)
			case 2:
				io.Op, k.mark = disk.Flush, l.Now(0, sectors)
			case 3:
				io.Op, io.Iov, k.entry = disk.WriteZeroes, nil, l.Zero(at, n)
			case 4:
				io.Op, io.Iov, k.entry = disk.Discard, nil, l.Discard(at, n)
			}
			tasks[io] = k
			e.Start(io)
			if program[0]&16 == 0 {
				collect()
			}
		}
		for len(tasks) > 0 && !v.Dead() {
			collect()
		}
		v.Cut()
		require.NoError(t, l.Restart(v.Image()))
	})
}
