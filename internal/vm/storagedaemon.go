package vm

import (
	"context"
	"runtime"
)

// StorageDaemon returns the words that run qemu-storage-daemon of the same version
// as the cached QEMU. What the cache lacks is fetched.
func StorageDaemon(ctx context.Context) (command []string, err error) {
	host, err := archOf(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	const pkg, program = "qemu-utils", "usr/bin/qemu-storage-daemon"
	root, err := ensure(ctx, recipe{
		name: "qemu-storage-daemon-" + host.name,
		key:  []string{toolsRelease, pkg},
		make: func(ctx context.Context, b *builder, dir string) error {
			apt, err := b.archive(ctx, host, toolsRelease)
			if err != nil {
				return err
			}
			return apt.closure(ctx, dir, toolsRelease+"-backports", pkg)
		},
	})
	if err != nil {
		return nil, err
	}
	return inPlace(root, host, program), nil
}
