package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// eachKernel runs the test once for each kernel.
func eachKernel(t *testing.T, test func(t *testing.T, k Kernel)) {
	for _, k := range Kernels() {
		t.Run(k.Name, func(t *testing.T) { test(t, k) })
	}
}

// logTimes puts into the test's log how long the guest took.
func logTimes(t *testing.T, res Result) {
	t.Helper()
	t.Logf("up %v, total %v", res.Up.Round(time.Millisecond), res.Total.Round(time.Millisecond))
}

// blank makes a disk image of the size in bytes.
func blank(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(name, nil, 0o600))
	require.NoError(t, os.Truncate(name, size))
	return name
}

// ownDisk returns the arguments for a disk that QEMU serves itself.
func ownDisk(id, image string) (args []string, device string) {
	return []string{"-blockdev", "driver=file,discard=unmap,node-name=" + id + ",filename=" + image},
		"virtio-blk-pci,drive=" + id + ",disable-legacy=on,serial=" + id
}

func TestVMScript(t *testing.T) {
	eachKernel(t, func(t *testing.T, k Kernel) {
		var live bytes.Buffer
		res, err := Run(t.Context(), Config{
			Kernel: k,
			Script: "uname -r; echo problem >&2",
			Live:   &live,
		})
		require.NoError(t, err)
		logTimes(t, res)
		assert.Equal(t, res.Kernel+"\nproblem\n", res.Output)
		assert.Equal(t, res.Output, live.String())
		if k.Name == "debian12" {
			assert.True(t, strings.HasPrefix(res.Kernel, "6.1."), res.Kernel)
		}
		assert.Contains(t, res.Console, "Linux version "+res.Kernel)
		assert.Contains(t, res.Firmware, "SeaBIOS")
		assert.Equal(t, 1, res.Ups)
	})
}

func TestVMScriptFails(t *testing.T) {
	res, err := Run(t.Context(), Config{Script: "echo here; exit 3"})
	var exit *ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 3, exit.Status)
	assert.Equal(t, 3, res.Status)
	assert.Equal(t, "here\n", res.Output)
}

func TestVMSilenceIsAnError(t *testing.T) {
	_, err := Run(t.Context(), Config{Script: "reboot -f"})
	assert.ErrorContains(t, err, "ended without a report")

	_, err = Run(t.Context(), Config{Script: "sleep 1000", Timeout: time.Second})
	require.ErrorContains(t, err, "not done within 1s")

	v, err := Start(t.Context(), Config{Script: "echo before; sleep 1000"})
	require.NoError(t, err)
	require.NoError(t, v.WaitOutput(t.Context(), "before"))
	v.Kill()
	_, err = v.Wait()
	assert.ErrorContains(t, err, "before", "the error shows what the work printed")
}

func TestVMStillbornIsAnError(t *testing.T) {
	defer func(was time.Duration) { birthTime = was }(birthTime)
	birthTime = 3 * time.Second
	begin := time.Now()
	_, err := Run(t.Context(), Config{Script: "true", Args: []string{"-S"}}) // its processors do not run
	require.ErrorIs(t, err, ErrStillborn)
	assert.Greater(t, time.Since(begin), maxBirths*birthTime, "it was tried again")

	v, err := Start(t.Context(), Config{Script: "true", Args: []string{"-S"}, Reboot: true})
	require.NoError(t, err)
	_, err = v.Wait()
	require.ErrorIs(t, err, ErrStillborn)
	assert.Equal(t, maxBirths-1, v.Events("RESET"), "it was reset")
}

func TestVMCrashIsAnError(t *testing.T) {
	eachKernel(t, func(t *testing.T, k Kernel) {
		res, err := Run(t.Context(), Config{
			Kernel: k,
			Reboot: k == Kernels()[0], // a crash counts even where a reset is welcome
			Script: "echo c >/proc/sysrq-trigger; sleep 1000", Timeout: patient,
		})
		require.ErrorContains(t, err, "the kernel crashed")
		assert.Contains(t, res.Console, "sysrq")
		assert.Less(t, res.Total, patient, "a crash ends the run at once")
	})
}

func TestVMContextEndsGuest(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	v, err := Start(ctx, Config{Script: "say ready; sleep 1000"})
	require.NoError(t, err)
	require.NoError(t, v.Expect(ctx, "ready"))
	mine := errors.New("changed my mind")
	cancel(mine)
	_, err = v.Wait()
	assert.ErrorIs(t, err, mine)
}

func TestVMRefusedDevice(t *testing.T) {
	_, err := Start(t.Context(), Config{
		Script:  "true",
		Devices: []string{VFIOUser(filepath.Join(t.TempDir(), "nobody"))},
	})
	assert.ErrorContains(t, err, "nobody", "QEMU's complaint is in the error")
}

func TestVMConversation(t *testing.T) {
	eachKernel(t, func(t *testing.T, k Kernel) {
		ctx := t.Context()
		v, err := Start(ctx, Config{Kernel: k, Script: `
			say "the first   line"
			expect "go on"
			echo "heard $(hear)"
			expect "not this" || say refused
		`})
		require.NoError(t, err)
		require.NoError(t, v.Expect(ctx, "the first   line"))
		require.NoError(t, v.Say(ctx, "go on"))
		require.NoError(t, v.Say(ctx, `back\slash  and "more"`))
		require.NoError(t, v.WaitOutput(ctx, "heard"))
		require.NoError(t, v.Say(ctx, "but this"))
		line, err := v.Hear(ctx)
		require.NoError(t, err)
		assert.Equal(t, "refused", line)
		_, err = v.Hear(ctx)
		assert.Error(t, err, "the guest ends without another word")
		res, err := v.Wait()
		require.NoError(t, err)
		assert.Contains(t, res.Output, `heard back\slash  and "more"`)
	})
}

func TestVMReboots(t *testing.T) {
	v, err := Start(t.Context(), Config{CPUs: 1, Reboot: true, Script: `
		say up
		case $(hear) in
		reboot) reboot -f ;;
		wait) sleep 1000 ;;
		esac
	`})
	require.NoError(t, err)
	ctx := t.Context()

	require.NoError(t, v.Expect(ctx, "up"))
	require.NoError(t, v.Say(ctx, "reboot"))
	require.NoError(t, v.Expect(ctx, "up"))
	require.NoError(t, v.Say(ctx, "wait"))
	_, err = v.QMP(ctx, "system_reset", nil)
	require.NoError(t, err)
	require.NoError(t, v.Expect(ctx, "up"))
	require.NoError(t, v.Say(ctx, "done"))
	res, err := v.Wait()
	require.NoError(t, err)
	assert.Equal(t, 3, res.Ups)
	assert.GreaterOrEqual(t, v.Events("RESET"), 2)
}

func TestVMOptionsAndMachineProtocol(t *testing.T) {
	ctx := t.Context()
	args, device := ownDisk("disk", blank(t, 1<<20))
	v, err := Start(ctx, Config{
		Memory:  384,
		CPUs:    1,
		Cmdline: "pci=nomsi",
		Args:    args,
		Devices: []string{device},
		Script:  "expect end; nproc; cat /proc/cmdline; grep virtio /proc/interrupts",
	})
	require.NoError(t, err)
	assert.DirExists(t, "/proc/"+strconv.Itoa(v.PID()))
	answer, err := v.QMP(ctx, "query-memory-size-summary", nil)
	require.NoError(t, err)
	var size struct {
		Base int64 `json:"base-memory"`
	}
	require.NoError(t, json.Unmarshal(answer, &size))
	assert.EqualValues(t, 384<<20, size.Base)
	_, err = v.QMP(ctx, "qom-get", map[string]string{"path": "/nowhere", "property": "x"})
	assert.ErrorContains(t, err, "nowhere")
	require.NoError(t, v.Say(ctx, "end"))
	res, err := v.Wait()
	require.NoError(t, err)
	assert.True(t, strings.HasPrefix(res.Output, "1\n"), "one processor")
	assert.Contains(t, res.Output, "pci=nomsi")
	assert.Contains(t, res.Output, "IO-APIC")
	assert.NotContains(t, res.Output, "MSI")
	_, err = v.QMP(ctx, "query-status", nil)
	assert.Error(t, err, "nobody is there to answer")
	assert.NoDirExists(t, "/proc/"+strconv.Itoa(v.PID()))
}

// TestVMDiesWithItsTest kills a process that runs a guest: QEMU must go too.
func TestVMDiesWithItsTest(t *testing.T) {
	const role = "VM_TEST_OWNER"
	if os.Getenv(role) != "" {
		v, err := Start(t.Context(), Config{Script: "sleep 1000"})
		require.NoError(t, err)
		fmt.Printf("QEMU is %d\n", v.PID())
		_, _ = v.Wait()
		return
	}
	_, err := findQEMU(t.Context(), "amd64") // so that the child need not fetch
	require.NoError(t, err)
	owner := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	owner.Env = append(os.Environ(), role+"=1")
	out, err := owner.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, owner.Start())
	var pid int
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "QEMU is %d", &pid)
	}
	require.NotZero(t, pid)
	require.NoError(t, owner.Process.Kill())
	_ = owner.Wait()
	assert.True(t, settles(func() bool {
		return errors.Is(unix.Kill(pid, 0), unix.ESRCH) || isZombie(pid)
	}), "QEMU is still there")
}

// isZombie says whether the process has ended and only waits to be collected.
func isZombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && bytes.Contains(stat, []byte(") Z "))
}

// TestVMDisks shows that a guest has all it takes to test a disk, on disks that
// QEMU serves itself.
func TestVMDisks(t *testing.T) {
	eachKernel(t, func(t *testing.T, k Kernel) {
		const size = 64 << 20
		images := []string{blank(t, size), blank(t, size)}
		firstArgs, first := ownDisk("first", images[0])
		secondArgs, second := ownDisk("second", images[1])
		note := filepath.Join(t.TempDir(), "note")
		require.NoError(t, os.WriteFile(note, []byte("from outside\n"), 0o600))
		res, err := Run(t.Context(), Config{
			Kernel:  k,
			Args:    append(firstArgs, secondArgs...),
			Devices: []string{first, second},
			Files:   map[string]string{"note": note},
			Script: `
				set -e
				udev
				lsblk -b -d -n -o NAME,SERIAL,SIZE,RO
				mkfs.ext4 -q /dev/vda
				mount /dev/vda /mnt
				cp -r /work /mnt/tree
				umount /mnt
				e2fsck -f -n /dev/vda
				fio --name=v --filename=/dev/vdb --rw=randrw --bsrange=4k-64k --size=8m \
					--ioengine=libaio --iodepth=8 --direct=1 --verify=crc32c --randseed=1
				fio --name=u --filename=/dev/vdb --rw=randread --bs=4k --size=1m --ioengine=io_uring
				fio --name=p --filename=/dev/vdb --rw=write --bs=64k --size=4m --ioengine=psync \
					--fsync=4 --verify=crc32c
				fio --name=p --filename=/dev/vdb --rw=read --bs=64k --size=4m --ioengine=psync \
					--verify=crc32c
				blkdiscard /dev/vdb
				dd if=note of=/dev/vdb bs=512 count=1 seek=3 conv=sync oflag=direct
				lspci -n -d 1af4:
			`,
		})
		require.NoError(t, err)
		logTimes(t, res)
		assert.Regexp(t, `vda +first +67108864 +0\nvdb +second +67108864 +0\n`, res.Output)
		assert.Contains(t, res.Output, "1af4:1042")

		written, err := os.ReadFile(images[1])
		require.NoError(t, err)
		want := make([]byte, size)
		copy(want[3*512:], "from outside\n")
		assert.True(t, bytes.Equal(want, written), "the disk holds what the guest wrote last")
		written, err = os.ReadFile(images[0])
		require.NoError(t, err)
		assert.True(t, bytes.Contains(written, []byte("from outside\n")), "the file is in the file system")
	})
}

func TestVMBootsDisk(t *testing.T) {
	sector, err := BootSector("booted from disk\r\n")
	require.NoError(t, err)
	image := blank(t, 1<<20)
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write(sector)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	args, device := ownDisk("disk", image)
	res, err := Run(t.Context(), Config{
		BootDisk: true,
		Until:    "booted from disk",
		Args:     args,
		Devices:  []string{device + ",bootindex=0"},
	})
	require.NoError(t, err)
	logTimes(t, res)

	_, err = Run(t.Context(), Config{BootDisk: true, Until: "booted from disk", Timeout: 5 * time.Second})
	assert.ErrorContains(t, err, "not done within 5s", "without a disk, nothing boots")
}

func TestVMTestBinary(t *testing.T) {
	binary := TestBinary(t, Kernel{}, "./testdata/inguest")
	eachKernel(t, func(t *testing.T, k Kernel) {
		res, err := Run(t.Context(), Config{
			Kernel: k, Test: binary, TestArgs: []string{"-test.run", "Passes"},
		})
		require.NoError(t, err)
		logTimes(t, res)
		assert.Contains(t, res.Output, "--- PASS: TestPasses")
		assert.Contains(t, res.Output, "on "+res.Kernel)
	})
	for run, complaint := range map[string]string{"Fails": "status 1", "Skips": "no test ran"} {
		t.Run(run, func(t *testing.T) {
			_, err := Run(t.Context(), Config{Test: binary, TestArgs: []string{"-test.run", run}})
			assert.ErrorContains(t, err, complaint)
		})
	}
}

func TestVMModules(t *testing.T) {
	res, err := Run(t.Context(), Config{
		Modules: []string{"nvme", "no_such_module"},
		Script:  "ls -d /sys/module/nvme /sys/module/nvme_core",
	})
	require.NoError(t, err)
	logTimes(t, res)
}

// Of a script that does not come to an end, the error says how far it came, and what the
// kernel does.
func TestVMScriptThatDoesNotEnd(t *testing.T) {
	for _, k := range []Kernel{Kernels()[0], ARM64()} {
		t.Run(k.Name, func(t *testing.T) {
			s, err := StartShell(t.Context(), Config{Kernel: k, Timeout: patient})
			require.NoError(t, err)
			t.Cleanup(func() {
				s.Kill()
				_, _ = s.Wait()
			})
			require.NoError(t, s.AwaitUp(t.Context()))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err = s.Run(ctx, "echo so far; sleep 1000")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			for _, part := range []string{"so far", "Show Blocked State", "Show backtrace of all active CPUs"} {
				require.ErrorContains(t, err, part)
			}
		})
	}
}
