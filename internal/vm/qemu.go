package vm

import (
	"context"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
)

// qemu is a QEMU that can be started: the words before its own arguments, and
// additions to the environment.
type qemu struct {
	command []string
	env     []string
}

var qemuVersion = regexp.MustCompile(`version (\d+)\.(\d+)`)

// findQEMU returns the machine's own QEMU if it can serve, or else the cached
// one.
func findQEMU(ctx context.Context, guestArch string) (qemu, error) {
	a, err := archOf(guestArch)
	if err != nil {
		return qemu{}, err
	}
	if q, ok := installedQEMU(ctx, a); ok {
		return q, nil
	}
	host, err := archOf(runtime.GOARCH)
	if err != nil {
		return qemu{}, err
	}
	root, err := ensure(ctx, qemuRecipe(host, a))
	if err != nil {
		return qemu{}, err
	}
	return unpackedQEMU(root, host, a), nil
}

// installedQEMU looks for a QEMU of at least 10.1 that knows vfio-user-pci.
func installedQEMU(ctx context.Context, a arch) (qemu, bool) {
	program, err := exec.LookPath(a.qemuProgram)
	if err != nil {
		return qemu{}, false
	}
	out, err := output(ctx, "", program, "--version")
	if err != nil {
		return qemu{}, false
	}
	m := qemuVersion.FindStringSubmatch(string(out))
	if m == nil {
		return qemu{}, false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < 10 || (major == 10 && minor < 1) {
		return qemu{}, false
	}
	_, err = output(ctx, "", program, "-machine", a.machine, "-device", "vfio-user-pci,help")
	return qemu{command: []string{program}}, err == nil
}

// qemuRecipe unpacks QEMU and what it brings to boot with.
func qemuRecipe(host, a arch) recipe {
	return recipe{
		name: "qemu-" + a.name + "-on-" + host.name,
		key:  append([]string{toolsRelease}, a.qemuPackages...),
		make: func(ctx context.Context, b *builder, dir string) error {
			apt, err := b.archive(ctx, host, toolsRelease)
			if err != nil {
				return err
			}
			return apt.closure(ctx, dir, toolsRelease+"-backports", a.qemuPackages...)
		},
	}
}

// unpackedQEMU runs QEMU in place: with the loader and the libraries it was
// built for, which this machine's own need not match.
func unpackedQEMU(root string, host, a arch) qemu {
	return qemu{
		command: append(inPlace(root, host, path.Join("usr/bin", a.qemuProgram)),
			"-L", filepath.Join(root, "usr/share/qemu"),
			"-L", filepath.Join(root, "usr/share/seabios"),
			"-L", filepath.Join(root, "usr/lib/ipxe/qemu")),
		env: []string{"QEMU_MODULE_DIR=" + filepath.Join(root, "usr/lib", host.triplet, "qemu")},
	}
}

// inPlace returns the words that run a program of an unpacked root.
func inPlace(root string, host arch, program string) []string {
	var libs []string
	for _, dir := range libraries(host) {
		libs = append(libs, filepath.Join(root, dir))
	}
	return []string{
		filepath.Join(root, host.loader), "--library-path", strings.Join(libs, ":"),
		filepath.Join(root, program),
	}
}
