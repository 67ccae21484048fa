package vm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vblk-ep/vblk-ep/internal/vm/guest"
)

// Config describes a guest and its work. Exactly one of Script, Test and
// BootDisk says what it does.
type Config struct {
	// Kernel to boot; the zero value is the newest for 64-bit x86. With
	// BootDisk, it says only which machine is meant.
	Kernel Kernel
	// Firmware of the machine; the zero value is QEMU's own choice.
	Firmware Firmware
	// Modules to load beside those that every guest has. Those that the kernel has
	// built in, or has not, are passed over.
	Modules []string
	// Memory of the guest in MiB; 0 means 512.
	Memory int
	// CPUs of the guest; 0 means 2.
	CPUs int
	// Devices are values of QEMU's -device; see [VFIOUser].
	Devices []string
	// Cmdline is added to the kernel's command line, for example "pci=nomsi".
	Cmdline string
	// Args are added to QEMU's command line, for example a disk.
	Args []string

	// Script is a shell script to run in the guest, as root, in /work, with
	// output and errors captured. Beside ordinary commands it has "say TEXT",
	// "expect TEXT" and "hear" to speak with the host, and "udev", which
	// starts udev for programs that ask it (lsblk, for the serial number).
	Script string
	// Test is a file made by [TestBinary] to run in the guest, with TestArgs
	// after -test.v. The run fails unless a test ran and all passed.
	Test     string
	TestArgs []string
	// BootDisk starts the machine's firmware and no kernel; see [BootImage].
	// Until is the text that must appear on the console or the debug port (0xe9)
	// for the run to succeed; the machine is then stopped.
	BootDisk bool
	Until    string

	// Live, when set, receives what the work prints as it comes; LiveConsole, what
	// the console shows.
	Live, LiveConsole io.Writer
	// Files are put into the guest: path in the guest (relative ones are in
	// /work) → path on this machine. Permissions are kept.
	Files map[string]string
	// Reboot lets the guest reset itself; the work then starts again. Without
	// it, a reset ends the run with an error.
	Reboot bool
	// Timeout ends the run with an error; 0 means five minutes.
	Timeout time.Duration
}

// Prop is a property of a device.
type Prop struct {
	Name  string
	Value any
}

// BootIndex is the property that orders the devices that firmware boots from;
// 0 is the first.
func BootIndex(n int) Prop { return Prop{Name: "bootindex", Value: n} }

// VFIOUser returns a [Config].Devices entry for the device that is served at a
// vfio-user socket.
func VFIOUser(socket string, props ...Prop) string {
	device := map[string]any{
		"driver": "vfio-user-pci",
		"socket": map[string]string{"type": "unix", "path": socket},
	}
	for _, p := range props {
		device[p.Name] = p.Value
	}
	text, err := json.Marshal(device)
	if err != nil {
		panic(fmt.Sprintf("vm: property of a device that is not JSON: %v", err)) // a mistake in the test
	}
	return string(text)
}

// withDefaults checks the configuration and fills in what was left out.
func (c Config) withDefaults() (Config, error) {
	works := 0
	for _, set := range []bool{c.Script != "", c.Test != "", c.BootDisk} {
		if set {
			works++
		}
	}
	if works != 1 {
		return c, errors.New("vm: set exactly one of Script, Test and BootDisk")
	}
	if c.BootDisk && c.Until == "" {
		return c, errors.New("vm: BootDisk needs Until, the text that shows success")
	}
	if c.Kernel == (Kernel{}) {
		c.Kernel = Kernels()[0]
	}
	switch _, known := firmwares[c.Firmware][c.Kernel.Arch]; {
	case c.Firmware != DefaultFirmware && !known:
		return c, fmt.Errorf("vm: no firmware %q for %s", c.Firmware, c.Kernel.Arch)
	case c.Firmware == DefaultFirmware && c.BootDisk && c.Kernel.Arch == "arm64":
		return c, errors.New("vm: BootDisk needs a Firmware on arm64")
	}
	if c.Memory == 0 {
		c.Memory = 512
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Minute
	}
	return c, nil
}

// overlay makes the archive that carries one run's work. It is unpacked last.
func (c Config) overlay(a arch) ([]byte, error) {
	var out cpioArchive
	out.file("init", 0o755, guest.Init)
	out.file("usr/bin/say", 0o755, guest.Say)
	out.file("usr/bin/hear", 0o755, guest.Hear)
	out.file("usr/bin/expect", 0o755, guest.Expect)
	out.file("usr/bin/udev", 0o755, guest.Udev)
	out.file("work/settings", 0o644, fmt.Appendf(nil, "OUTPUT=%s\nREPORT=%s\nMODULES='%s'\n",
		a.portNames[0], a.portNames[1], strings.Join(modulesOf(c.Modules), " ")))

	files := make(map[string]string)
	for name, from := range c.Files {
		if !filepath.IsAbs(name) {
			name = filepath.Join("work", name)
		}
		files[name] = from
	}
	run := c.Script
	if c.Test != "" {
		files["work/test"] = c.Test
		run = "exec ./test -test.v -test.timeout=" + (c.Timeout * 3 / 4).String()
		for _, arg := range c.TestArgs {
			run += " '" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
	}
	out.file("work/run", 0o755, []byte(run+"\n"))
	for name, from := range files {
		info, err := os.Stat(from)
		if err != nil {
			return nil, fmt.Errorf("vm: file for the guest: %w", err)
		}
		data, err := os.ReadFile(from)
		if err != nil {
			return nil, fmt.Errorf("vm: file for the guest: %w", err)
		}
		out.file(name, info.Mode(), data)
	}
	return out.bytes(), nil
}
