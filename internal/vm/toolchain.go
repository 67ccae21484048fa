package vm

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// toolsRelease is the release of Debian whose programs run in the guest, and
// whose backports bring QEMU and the newest kernel.
const toolsRelease = "trixie"

// Kernel names one packaged kernel. The zero Kernel is the newest one for
// 64-bit x86.
type Kernel struct {
	Name string // for test names: "newest", "debian12"
	Arch string // Go's name of the processor: "amd64", "arm64"

	release string // Debian's code name
	suite   string // the suite to take it from, unless it is the release itself

	image, version string // of a kernel that is not packaged
}

// OwnKernel returns a kernel that was built on this machine: an image for the
// processor arch with everything a guest needs built in, and what uname -r says.
func OwnKernel(name, arch, image, version string) Kernel {
	return Kernel{Name: name, Arch: arch, image: image, version: version}
}

// Kernels returns the kernels that everything is tested with: the newest that
// Debian packages, and the 6.1 of Debian 12, both for 64-bit x86.
func Kernels() []Kernel {
	return []Kernel{
		{Name: "newest", Arch: "amd64", release: toolsRelease, suite: toolsRelease + "-backports"},
		{Name: "debian12", Arch: "amd64", release: "bookworm"},
	}
}

// ARM64 returns the newest kernel that Debian packages for 64-bit Arm. Its
// guests run on QEMU's virt board with a GICv3 and an ITS.
func ARM64() Kernel {
	return Kernel{Name: "arm64", Arch: "arm64", release: toolsRelease, suite: toolsRelease + "-backports"}
}

// Fetch fills the cache with everything that guests of [Kernels] need. It is
// for preparing a machine ahead of time: [Start] fetches what is missing.
func Fetch(ctx context.Context) error {
	if _, err := findQEMU(ctx, "amd64"); err != nil {
		return err
	}
	for _, k := range Kernels() {
		if _, err := fetchGuest(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

// FetchAll fills the cache with everything that this package can use: what
// [Fetch] brings, guests of [ARM64] and every [Firmware].
func FetchAll(ctx context.Context) error {
	if err := Fetch(ctx); err != nil {
		return err
	}
	k := ARM64()
	if _, err := findQEMU(ctx, k.Arch); err != nil {
		return err
	}
	if _, err := fetchGuest(ctx, k); err != nil {
		return err
	}
	for f, images := range firmwares {
		for arch := range images {
			if _, err := fetchFirmware(ctx, f, arch); err != nil {
				return err
			}
		}
	}
	return nil
}

// KernelImage returns the name of the kernel's image in the cache, which is
// also a UEFI program. What the cache lacks is fetched. The file is not to be
// changed.
func KernelImage(ctx context.Context, k Kernel) (string, error) {
	g, err := fetchGuest(ctx, k)
	return g.image, err
}

// bootSet is what a machine boots with, as files in the cache.
type bootSet struct {
	arch     arch
	firmware string   // empty for the default one
	image    string   // the kernel
	version  string   // what uname -r says
	archives []string // initial file systems, in the order of concatenation
}

// fetch provides what the configuration's machine boots with.
func fetch(ctx context.Context, c Config) (g bootSet, err error) {
	if c.BootDisk {
		g.arch, err = archOf(c.Kernel.Arch)
	} else {
		g, err = fetchGuest(ctx, c.Kernel, c.Modules...)
	}
	if err != nil {
		return bootSet{}, err
	}
	g.firmware, err = fetchFirmware(ctx, c.Firmware, c.Kernel.Arch)
	return g, err
}

// fetchGuest provides the kernel, its modules and the guest's programs.
func fetchGuest(ctx context.Context, k Kernel, more ...string) (bootSet, error) {
	if k == (Kernel{}) {
		k = Kernels()[0]
	}
	a, err := archOf(k.Arch)
	if err != nil {
		return bootSet{}, err
	}
	tools, err := ensure(ctx, toolsRecipe(a))
	if err != nil {
		return bootSet{}, err
	}
	programs, err := ensure(ctx, programsRecipe(a, tools))
	if err != nil {
		return bootSet{}, err
	}
	archives := []string{filepath.Join(programs, "archive.cpio")}
	if k.image != "" {
		return bootSet{arch: a, image: k.image, version: k.version, archives: archives}, nil
	}
	kernel, err := ensure(ctx, kernelRecipe(a, k))
	if err != nil {
		return bootSet{}, err
	}
	host, err := archOf(runtime.GOARCH)
	if err != nil {
		return bootSet{}, err
	}
	hostTools, err := ensure(ctx, toolsRecipe(host))
	if err != nil {
		return bootSet{}, err
	}
	modules, err := ensure(ctx, modulesRecipe(kernel, inPlace(hostTools, host, "usr/bin/xz"), modulesOf(more)))
	if err != nil {
		return bootSet{}, err
	}
	image, version, err := findImage(kernel)
	if err != nil {
		return bootSet{}, err
	}
	return bootSet{
		arch:     a,
		image:    image,
		version:  version,
		archives: append(archives, filepath.Join(modules, "archive.cpio")),
	}, nil
}

// toolPackages hold the guest's programs.
var toolPackages = []string{
	"busybox-static", "coreutils", "dosfstools", "e2fsprogs", "fdisk", "fio",
	"kmod", "pciutils", "udev", "util-linux", "xz-utils",
}

// guestPrograms are the programs that go into every guest, beside busybox.
var guestPrograms = []string{
	"usr/bin/dd", "usr/bin/fallocate", "usr/bin/fio", "usr/bin/lsblk",
	"usr/bin/lspci", "usr/bin/setpci", "usr/bin/sync", "usr/bin/taskset",
	"usr/bin/udevadm", "usr/lib/systemd/systemd-udevd", "usr/sbin/badblocks", "usr/sbin/blkdiscard", "usr/sbin/blkid",
	"usr/sbin/blkzone", "usr/sbin/blockdev", "usr/sbin/dumpe2fs",
	"usr/sbin/e2fsck", "usr/sbin/fsck.ext4", "usr/sbin/fsck.vfat",
	"usr/sbin/fstrim", "usr/sbin/mkfs.ext4", "usr/sbin/mkfs.vfat",
	"usr/bin/partx", "usr/sbin/resize2fs", "usr/sbin/sfdisk",
	"usr/sbin/tune2fs", "usr/sbin/wipefs",
}

// guestRules make udev tell what it knows about disks.
var guestRules = []string{"50-udev-default.rules", "60-block.rules", "60-persistent-storage.rules"}

// guestModules are the modules that go into every guest and are loaded before
// its work starts; what a kernel has built in is skipped.
var guestModules = []string{
	"virtio_pci", "virtio_blk", "crc32c_generic", "ext4", "vfat",
	"nls_cp437", "nls_ascii", "nls_iso8859_1",
}

// modulesOf lists the modules of a guest that is given more than every one is.
func modulesOf(more []string) []string { return slices.Concat(guestModules, more) }

// toolsRecipe unpacks the packages of the guest's programs.
func toolsRecipe(a arch) recipe {
	return recipe{
		name: "tools-" + a.name,
		key:  append([]string{toolsRelease}, toolPackages...),
		make: func(ctx context.Context, b *builder, dir string) error {
			apt, err := b.archive(ctx, a, toolsRelease)
			if err != nil {
				return err
			}
			return apt.closure(ctx, dir, "", toolPackages...)
		},
	}
}

// programsRecipe makes the archive with the guest's programs.
func programsRecipe(a arch, tools string) recipe {
	return recipe{
		name: "programs-" + a.name,
		key:  slices.Concat([]string{filepath.Base(tools)}, guestPrograms, guestRules),
		make: func(_ context.Context, _ *builder, dir string) error {
			l := layer{root: tools, libs: libraries(a)}
			for _, d := range []string{"dev", "proc", "sys", "tmp", "run", "mnt", "work", "etc"} {
				l.out.mkdir(d)
			}
			for _, merged := range []string{"bin", "sbin", "lib", "lib64"} {
				l.out.mkdir("usr/" + merged)
				l.out.symlink(merged, "usr/"+merged)
			}
			for _, name := range append([]string{"usr/bin/busybox"}, guestPrograms...) {
				if err := l.program(name); err != nil {
					return err
				}
			}
			for _, name := range guestRules {
				if err := l.program(path.Join("usr/lib/udev/rules.d", name)); err != nil {
					return err
				}
			}
			l.out.file("etc/ld.so.conf", 0o644, []byte("/"+strings.Join(l.libs, "\n/")+"\n"))
			l.out.symlink("etc/mtab", "/proc/self/mounts")
			return os.WriteFile(filepath.Join(dir, "archive.cpio"), l.out.bytes(), 0o644)
		},
	}
}

// libraries lists the folders of an unpacked root that hold shared libraries.
func libraries(a arch) []string {
	base := path.Join("usr/lib", a.triplet)
	return []string{base, path.Join(base, "ceph"), path.Join(base, "systemd")}
}

// kernelPackage matches the packages that make up a kernel: one until Linux
// 6.12, several since.
var kernelPackage = regexp.MustCompile(`^linux-(image|binary|modules)-[0-9]`)

// kernelRecipe unpacks the packages that the meta package leads to today.
func kernelRecipe(a arch, k Kernel) recipe {
	meta := "linux-image-" + a.kernel
	return recipe{
		name: "kernel-" + k.Name + "-" + a.name,
		key:  []string{k.release, k.suite, meta},
		make: func(ctx context.Context, b *builder, dir string) error {
			apt, err := b.archive(ctx, a, k.release)
			if err != nil {
				return err
			}
			packages, err := kernelPackages(ctx, apt, k.suite, meta)
			if err != nil {
				return err
			}
			return apt.exactly(ctx, dir, k.suite, packages...)
		},
	}
}

// kernelPackages follows the dependencies of the meta package.
func kernelPackages(ctx context.Context, apt *archive, suite, meta string) ([]string, error) {
	var found []string
	for queue := []string{meta}; len(queue) > 0; queue = queue[1:] {
		deps, err := apt.depends(ctx, suite, queue[0])
		if err != nil {
			return nil, err
		}
		for _, d := range deps {
			if kernelPackage.MatchString(d) && !slices.Contains(found, d) {
				found = append(found, d)
				queue = append(queue, d)
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s leads to no kernel package", meta)
	}
	return found, nil
}

// findImage returns the one kernel image below root and its version.
func findImage(root string) (image, version string, err error) {
	for _, pattern := range []string{"usr/lib/modules/*/vmlinuz", "boot/vmlinuz-*"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return "", "", err
		}
		if len(found) == 1 {
			image = found[0]
			version = strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
			if version == "vmlinuz" {
				version = filepath.Base(filepath.Dir(image))
			}
			return image, version, nil
		}
	}
	return "", "", fmt.Errorf("vm: no kernel image below %s", root)
}

// modulesRecipe makes the archive with the kernel's modules; xz is the command
// that decompresses them.
func modulesRecipe(kernel string, xz, names []string) recipe {
	return recipe{
		name: "modules-" + filepath.Base(kernel),
		key:  append([]string{filepath.Base(kernel)}, names...),
		make: func(ctx context.Context, _ *builder, dir string) error {
			_, version, err := findImage(kernel)
			if err != nil {
				return err
			}
			root := filepath.Join(kernel, "usr/lib/modules", version)
			if found, _ := exists(filepath.Join(root, "kernel")); !found {
				root = filepath.Join(kernel, "lib/modules", version)
			}
			tree, err := openModules(root, func(file string) ([]byte, error) {
				return output(ctx, "", xz[0], append(slices.Clone(xz[1:]), "-dc", file)...)
			})
			if err != nil {
				return err
			}
			modules, err := tree.load(names...)
			if err != nil {
				return err
			}
			var out cpioArchive
			base := path.Join("usr/lib/modules", version)
			for _, name := range slices.Sorted(maps.Keys(modules)) {
				m := modules[name]
				out.file(path.Join(base, m.path), 0o644, m.data)
			}
			out.file(path.Join(base, "modules.dep"), 0o644, []byte(modulesDep(modules)))
			return os.WriteFile(filepath.Join(dir, "archive.cpio"), out.bytes(), 0o644)
		},
	}
}

// archive opens the package lists of a release, with what belongs to it.
func (b *builder) archive(ctx context.Context, a arch, release string) (*archive, error) {
	dir, err := os.MkdirTemp(b.work, "apt-*")
	if err != nil {
		return nil, err
	}
	var suites []string
	if release == toolsRelease {
		suites = append(suites, release+"-backports")
	}
	return openArchive(ctx, dir, a.name, release, suites...)
}
