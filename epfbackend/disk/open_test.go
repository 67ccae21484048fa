package disk

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
	"golang.org/x/sys/unix"
)

// refused requires that Open fails in this way, with all of the words in its one
// sentence.
func refused(t *testing.T, path string, o Options, kind error, words ...string) {
	t.Helper()
	s, err := Open(path, o)
	if err == nil {
		s.Close()
	}
	require.ErrorIs(t, err, kind)
	var e *Error
	require.True(t, errors.As(err, &e))
	for _, w := range append(words, path) {
		require.Contains(t, err.Error(), w)
	}
	require.NotContains(t, err.Error(), "\n")
}

func opened(t *testing.T, path string, o Options) Store {
	t.Helper()
	s, err := Open(path, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.NoError(t, s.Close(), "twice is harmless")
	})
	return s
}

func TestWhatIsNotADisk(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	free := filepath.Join(dir, "node")
	require.NoError(t, unix.Mknod(free, unix.S_IFBLK|0o600, int(unix.Mkdev(259, 4000))))

	refused(t, filepath.Join(dir, "none"), Options{}, ErrNotFound, "no such disk")
	refused(t, filepath.Join(dir, "none"), Options{}, unix.ENOENT)
	refused(t, filepath.Join(socket, "x"), Options{}, ErrNotFound, "no such disk")
	refused(t, free, Options{}, ErrNotFound, "no device")
	refused(t, dir, Options{}, ErrNotDisk, "is a directory, not a disk")
	refused(t, socket, Options{}, ErrNotDisk, "is not a disk")
	refused(t, fifo, Options{}, ErrNotDisk, "is not a disk")
	refused(t, "/dev/null", Options{}, ErrNotDisk, "is not a disk")
}

func TestSizesThatCannotBeServed(t *testing.T) {
	file := func(size int64) string { return blktest.File(t, size) }
	refused(t, file(0), Options{}, ErrSize, "is empty", "truncate -s")
	refused(t, file(1000), Options{}, ErrSize, "1000", "multiple of the block size of 512", "truncate -s %512")
	refused(t, file(512*9), Options{BlockSize: 4096}, ErrSize, "truncate -s %4096")
	for _, b := range []uint32{1, 256, 513, 8192} {
		refused(t, file(mib), Options{BlockSize: b}, ErrSize, "512, 1024, 2048 or 4096")
	}
	require.EqualValues(t, 2048, opened(t, file(mib), Options{BlockSize: 2048}).Info().LogicalBlock)
	loop := blktest.Loop(t, file(mib), blktest.LoopOptions{BlockSize: 4096})
	info := opened(t, loop, Options{BlockSize: 1024}).Info()
	require.Equal(t, [...]uint32{1024, 4096, 4096}, [...]uint32{info.LogicalBlock, info.PhysicalBlock, info.NativeBlock})
	own := blktest.Loop(t, file(mib), blktest.LoopOptions{BlockSize: 4096})
	require.Zero(t, opened(t, own, Options{BlockSize: 4096}).Info().NativeBlock)
	small := blktest.Loop(t, file(mib), blktest.LoopOptions{})
	refused(t, small, Options{BlockSize: 4096}, ErrSize, "blocks of 512", "leave the block size out")

	for _, s := range []string{"", "0", "-1", "1000", "5x", "G", "99999999999G", "9223372036854775807"} {
		refused(t, "null:"+s, Options{}, ErrSize, "null:SIZE")
	}
	for s, n := range map[string]int64{"512": 512, "4k": 4096, "3M": 3 * mib, "10G": 10 << 30, "2t": 2 << 40} {
		require.Equal(t, n, opened(t, "null:"+s, Options{}).Info().Size)
	}
}

func TestInfoOfRealDisks(t *testing.T) {
	for name, make := range media() {
		t.Run(name, func(t *testing.T) {
			m := make(t, 4*mib)
			i := opened(t, m.path, Options{}).Info()
			require.Equal(t, m.path, i.Path)
			require.EqualValues(t, 4*mib, i.Size)
			want := map[string]Kind{
				"ext4": File, "ext4on4k": File, "tmpfs": File,
				"loop": BlockDevice, "loop4k": BlockDevice, "partition": Partition,
			}
			require.Equal(t, want[name], i.Kind)
			require.EqualValues(t, map[bool]int{true: 4096, false: 512}[name == "loop4k"], i.LogicalBlock)
			require.EqualValues(t, map[bool]int{true: 4096}[name == "ext4on4k"], i.NativeBlock)
			require.GreaterOrEqual(t, i.PhysicalBlock, i.LogicalBlock)
			require.GreaterOrEqual(t, i.MinIO, i.LogicalBlock)
			require.False(t, i.ReadOnly)
			require.True(t, i.Discard.Supported)
			require.True(t, i.WriteZeroes.Supported)
			require.False(t, i.SecureErase.Supported, "loop devices and files cannot")
			require.NotZero(t, i.Discard.Granularity)
			require.Positive(t, i.Discard.MaxBytes)
			require.Nil(t, i.Lifetime)
			require.Equal(t, name != "tmpfs", i.Direct, i.DirectWhy)
			require.NotEmpty(t, i.DirectWhy)
			if i.Direct {
				require.NotZero(t, i.MemAlign)
				require.NotZero(t, i.OffsetAlign)
				require.LessOrEqual(t, i.OffsetAlign, uint32(4096))
			}
			require.NotEmpty(t, i.Serial)
			require.LessOrEqual(t, len(i.Serial), 20)
			if name == "partition" {
				require.True(t, strings.HasSuffix(i.Serial, "-p1"), i.Serial)
			}
		})
	}
}

func TestSerialOfAFileIsTheSameByEachName(t *testing.T) {
	path := blktest.File(t, mib)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(path, link))
	serials := map[string]bool{}
	for _, p := range []string{path, link} {
		s, err := Open(p, Options{})
		require.NoError(t, err)
		serials[s.Info().Serial] = true
		require.NoError(t, s.Close())
	}
	require.Len(t, serials, 1)
	require.False(t, serials[opened(t, blktest.File(t, mib), Options{}).Info().Serial])
}

func TestDirectModes(t *testing.T) {
	onTmpfs := fileIn(t, blktest.Mount(t, "none", "tmpfs", ""), mib)
	refused(t, onTmpfs, Options{Direct: DirectOn}, ErrUnsupported, "direct access is not possible", "in memory")
	s, err := Open(onTmpfs, Options{})
	require.NoError(t, err)
	require.False(t, s.Info().Direct)
	require.NoError(t, s.Close())

	path := blktest.File(t, mib)
	for mode, want := range map[DirectMode]bool{DirectOn: true, DirectOff: false, DirectAuto: true} {
		s, err := Open(path, Options{Direct: mode})
		require.NoError(t, err)
		require.Equal(t, want, s.Info().Direct, s.Info().DirectWhy)
		require.NoError(t, s.Close())
	}
}

func TestReadOnlyIsOurDoing(t *testing.T) {
	for name, make := range media() {
		for _, kind := range []EngineKind{URing, Plain} {
			t.Run(fmt.Sprintf("%s/%s", name, kind), func(t *testing.T) {
				m := make(t, mib)
				r := newRig(t, m.path, Options{ReadOnly: true}, kind, 4)
				info := r.store.Info()
				require.True(t, info.ReadOnly)
				require.False(t, info.Discard.Supported || info.WriteZeroes.Supported || info.SecureErase.Supported)
				mem := aligned(t, 4096)
				for _, op := range []Op{Write, Discard, WriteZeroes, SecureErase} {
					io := &IO{Op: op, Length: 4096, Iov: vec(mem)}
					r.do(io)
					require.Equal(t, unix.EROFS, io.Err)
				}
				r.must(transfer(Read, 0, mem))
				r.must(&IO{Op: Flush})
				require.NoError(t, r.store.Flush())
				// Not only the check: the descriptors cannot write either.
				d := r.disk()
				for _, fd := range []int{d.t.buffered, d.t.direct} {
					_, err := unix.Pwrite(fd, mem, 0)
					require.Equal(t, unix.EBADF, err)
				}
			})
		}
	}
}

func TestWriteProtectedDisks(t *testing.T) {
	loop := blktest.Loop(t, blktest.File(t, mib), blktest.LoopOptions{ReadOnly: true})
	refused(t, loop, Options{}, ErrReadOnly, "can only be read", "add readonly")
	opened(t, loop, Options{ReadOnly: true})

	dir := blktest.Mount(t, "none", "tmpfs", "")
	path := fileIn(t, dir, mib)
	require.NoError(t, unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	refused(t, path, Options{}, ErrReadOnly, "add readonly")
	s, err := Open(path, Options{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

// TestOpenAsChild is what the test program does as another process: it opens a
// disk, says how that went, and holds the disk until its input ends.
func TestOpenAsChild(t *testing.T) {
	path := os.Getenv("DISK_CHILD_PATH")
	if path == "" {
		return
	}
	s, err := Open(path, Options{ReadOnly: os.Getenv("DISK_CHILD_READONLY") != ""})
	if err != nil {
		fmt.Printf("refused %v\n", err)
		return
	}
	fmt.Println("opened ")
	os.Stdin.Read(make([]byte, 1))
	s.Close()
}

// inChild opens the disk in another process, and returns what that said. The
// process ends with the test.
func inChild(t *testing.T, path string, cred *syscall.Credential, env ...string) (said string, pid int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOpenAsChild$")
	cmd.Env = append(append(os.Environ(), "DISK_CHILD_PATH="+path, "GORACE=atexit_sleep_ms=0"), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	cmd.Dir = "/"
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	buf := make([]byte, 1000)
	n, err := out.Read(buf)
	require.NoError(t, err)
	return string(buf[:n]), cmd.Process.Pid
}

func TestNoPermission(t *testing.T) {
	path := blktest.File(t, mib)
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	exe, err := os.Readlink("/proc/self/exe")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(filepath.Dir(exe), 0o755))
	require.NoError(t, os.Chmod(filepath.Dir(filepath.Dir(exe)), 0o755))
	require.NoError(t, os.Chown(path, 0, 6)) // disk, on Debian and Fedora alike
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}

	require.NoError(t, os.Chmod(path, 0o660))
	said, _ := inChild(t, path, nobody)
	require.Contains(t, said, "permission denied; run as root or join group disk")
	require.NoError(t, os.Chmod(path, 0o644))
	said, _ = inChild(t, path, nobody)
	require.Contains(t, said, "permission denied; run as root, or add readonly")
	said, _ = inChild(t, path, nobody, "DISK_CHILD_READONLY=1")
	require.Contains(t, said, "opened")
}
