package vm

import "fmt"

// arch is what differs between the processors a guest, or this machine, can
// have. A new one is a new entry here.
type arch struct {
	name    string // Go's GOARCH and Debian's name, which agree
	triplet string // Debian's multiarch folder
	loader  string // the dynamic loader below an unpacked root

	qemuPackage string
	qemuProgram string
	machine     string // QEMU's -machine
	cpu         string // QEMU's -cpu without hardware virtualisation
	hwFlags     []string
	kernel      string   // the suffix of Debian's kernel meta package
	console     string   // the kernel's console, on the first serial port
	devices     []string // QEMU's arguments that put the ports into the machine
	portNames   []string // what the guest calls the second and third serial port
}

var arches = map[string]arch{
	"amd64": {
		name:        "amd64",
		triplet:     "x86_64-linux-gnu",
		loader:      "usr/lib64/ld-linux-x86-64.so.2",
		qemuPackage: "qemu-system-x86",
		qemuProgram: "qemu-system-x86_64",
		machine:     "q35",
		cpu:         "qemu64",
		hwFlags:     []string{"vmx", "svm"},
		kernel:      "cloud-amd64",
		console:     "ttyS0,115200",
		devices: []string{
			"-device", "isa-serial,chardev=console,index=0",
			"-device", "isa-serial,chardev=output,index=1",
			// The third port's usual interrupt is the first one's.
			"-device", "isa-serial,chardev=report,index=2,irq=7",
			"-device", "isa-debugcon,chardev=debug,iobase=0xe9",
			"-device", "isa-debugcon,chardev=firmware,iobase=0x402",
		},
		portNames: []string{"ttyS1", "ttyS2"},
	},
}

func archOf(name string) (arch, error) {
	a, ok := arches[name]
	if !ok {
		return arch{}, fmt.Errorf("vm: no guests of architecture %q yet", name)
	}
	return a, nil
}
