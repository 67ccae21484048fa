package vm

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ports are the machine's character devices that we hold the other ends of.
type ports struct {
	console  *port // first serial port: the kernel's or the firmware's console
	output   *port // another: what the work prints
	report   *port // a third: see report
	debug    *port // I/O port 0xe9, on x86
	firmware *port // I/O port 0x402, on x86: the firmware's own log
	qmp      *port
}

func newPorts() (p ports, err error) {
	for _, one := range []struct {
		name string
		at   **port
	}{
		{"console", &p.console},
		{"output", &p.output},
		{"report", &p.report},
		{"debug", &p.debug},
		{"firmware", &p.firmware},
		{"qmp", &p.qmp},
	} {
		if *one.at, err = newPort(one.name); err != nil {
			p.close()
			return ports{}, err
		}
	}
	return p, nil
}

func (p ports) all() []*port {
	return []*port{p.console, p.output, p.report, p.debug, p.firmware, p.qmp}
}

func (p ports) close() {
	for _, one := range p.all() {
		if one != nil {
			one.close()
		}
	}
}

// firstFD is the number that QEMU sees of the first file it inherits beside
// its standard ones.
const firstFD = 3

// arguments is QEMU's command line. It inherits the ends of ports.all, in
// order, from firstFD, and then the initial file system.
func arguments(c Config, g bootSet) []string {
	memory := strconv.Itoa(c.Memory) + "M"
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		// A device's server maps the guest's memory.
		"-object", "memory-backend-memfd,id=mem,share=on,size=" + memory,
		"-m", memory,
		"-smp", strconv.Itoa(c.CPUs),
	}
	machine := g.arch.machine + ",memory-backend=mem"
	if c.BootDisk && c.Firmware == DefaultFirmware {
		machine += ",graphics=off" // SeaBIOS prints to the serial port then
	}
	args = append(args, "-machine", machine)
	if hasVirtualisation(g.arch) {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		args = append(args, "-accel", "tcg,thread=multi", "-cpu", g.arch.cpu)
	}
	names := []string{"console", "output", "report", "debug", "firmware", "qmp"}
	for i, name := range names {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d", name, firstFD+i))
	}
	args = append(args, g.arch.devices...)
	args = append(args, "-qmp", "chardev:qmp")
	if !c.Reboot {
		args = append(args, "-no-reboot")
	}
	if g.firmware != "" {
		args = append(args, c.Firmware.arguments(g.arch.name, g.firmware)...)
	}
	if !c.BootDisk {
		// A panic resets the machine at once, which ends the run. All of SysRq works.
		cmdline := "console=" + g.arch.console + " panic=-1 oops=panic sysrq_always_enabled " + c.Cmdline
		args = append(args, "-kernel", g.image,
			"-initrd", fmt.Sprintf("/proc/self/fd/%d", firstFD+len(names)),
			"-append", strings.TrimSpace(cmdline))
	}
	for _, d := range c.Devices {
		args = append(args, "-device", d)
	}
	return append(args, c.Args...)
}

// hasVirtualisation says whether the processor can run guests of the
// architecture. That /dev/kvm exists does not: it may be there and useless.
func hasVirtualisation(a arch) bool {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return false
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = kvm.Close()
	for field := range strings.FieldsSeq(string(info)) {
		for _, flag := range a.hwFlags {
			if field == flag {
				return true
			}
		}
	}
	return false
}
