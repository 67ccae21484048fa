package vm

import "fmt"

// arch is what differs between the processors a guest, or this machine, can
// have. A new one is a new entry here.
type arch struct {
	name    string // Go's GOARCH and Debian's name, which agree
	triplet string // Debian's multiarch folder
	loader  string // the dynamic loader below an unpacked root

	qemuPackages []string
	qemuProgram  string
	machine      string   // QEMU's -machine
	cpu          string   // QEMU's -cpu without hardware virtualisation
	hwFlags      []string // what /proc/cpuinfo lists where KVM can serve
	kernel       string   // the suffix of Debian's kernel meta package
	console      string   // the kernel's console, on the console port
	devices      []string // QEMU's arguments that put the ports into the machine
	portNames    []string // what the guest calls the output and the report port
}

var arches = map[string]arch{
	"amd64": {
		name:         "amd64",
		triplet:      "x86_64-linux-gnu",
		loader:       "usr/lib64/ld-linux-x86-64.so.2",
		qemuPackages: []string{"qemu-system-x86", "seabios", "ipxe-qemu"},
		qemuProgram:  "qemu-system-x86_64",
		machine:      "q35",
		cpu:          "qemu64",
		hwFlags:      []string{"vmx", "svm"},
		kernel:       "cloud-amd64",
		console:      "ttyS0,115200",
		devices: []string{
			"-device", "isa-serial,chardev=console,index=0",
			// The second port stays free: edk2 takes it for a console too. The
			// third one's usual interrupt is the first one's.
			"-device", "isa-serial,chardev=output,index=2,irq=7",
			"-device", "isa-serial,chardev=report,index=3",
			"-device", "isa-debugcon,chardev=debug,iobase=0xe9",
			"-device", "isa-debugcon,chardev=firmware,iobase=0x402",
		},
		portNames: []string{"ttyS2", "ttyS3"},
	},
	"arm64": {
		name:         "arm64",
		triplet:      "aarch64-linux-gnu",
		loader:       "usr/lib/ld-linux-aarch64.so.1",
		qemuPackages: []string{"qemu-system-arm"},
		qemuProgram:  "qemu-system-aarch64",
		machine:      "virt,gic-version=3,its=on",
		cpu:          "cortex-a72",
		kernel:       "cloud-arm64",
		console:      "ttyAMA0",
		devices: []string{
			"-serial", "chardev:console",
			"-device", "pci-serial,chardev=output",
			"-device", "pci-serial,chardev=report",
		},
		portNames: []string{"ttyS0", "ttyS1"},
	},
}

func archOf(name string) (arch, error) {
	a, ok := arches[name]
	if !ok {
		return arch{}, fmt.Errorf("vm: no guests of architecture %q", name)
	}
	return a, nil
}
