package vm

import (
	"context"
	"errors"
	"fmt"
)

// Unpack returns a folder of the cache that holds the named packages side by
// side, unpacked and not installed, and nothing of what they depend on. They
// are the newest for the processor arch ("amd64", "arm64") in the release that
// the guest's programs come from and its backports; the folder's file
// "packages" says which. It is for builds that need a kernel's source or
// headers. The folder is not to be changed.
func Unpack(ctx context.Context, arch string, packages ...string) (string, error) {
	if len(packages) == 0 {
		return "", errors.New("vm: unpack which packages?")
	}
	a, err := archOf(arch)
	if err != nil {
		return "", err
	}
	const suite = toolsRelease + "-backports"
	return ensure(ctx, recipe{
		name: packages[0] + "-" + a.name,
		key:  append([]string{toolsRelease, suite}, packages...),
		make: func(ctx context.Context, b *builder, dir string) error {
			apt, err := b.archive(ctx, a, toolsRelease)
			if err != nil {
				return err
			}
			return apt.exactly(ctx, dir, suite, packages...)
		},
	})
}

// KernelVersion returns what uname -r says in guests of the kernel. What the
// cache lacks is fetched.
func KernelVersion(ctx context.Context, k Kernel) (string, error) {
	a, err := archOf(k.Arch)
	if err != nil {
		return "", err
	}
	dir, err := ensure(ctx, kernelRecipe(a, k))
	if err != nil {
		return "", err
	}
	_, version, err := findImage(dir)
	return version, err
}

// FindKernel returns the kernel of [Kernels] or [ARM64] with that name.
func FindKernel(name string) (Kernel, error) {
	for _, k := range append(Kernels(), ARM64()) {
		if k.Name == name {
			return k, nil
		}
	}
	return Kernel{}, fmt.Errorf("vm: no kernel %q", name)
}
