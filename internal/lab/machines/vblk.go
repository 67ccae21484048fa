package machines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// AddDisk gives the endpoint a disk, /dev/vda, that is empty: a file in the folder. It
// is called before Start.
func (c *Config) AddDisk(dir string) error {
	c.disk = filepath.Join(dir, "disk")
	c.EP.Args = append(c.EP.Args, "-blockdev", "driver=file,node-name=disk,discard=unmap,filename="+c.disk)
	c.EP.Devices = append(c.EP.Devices, "virtio-blk-pci,drive=disk,disable-legacy=on")
	f, err := os.Create(c.disk)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(diskSize), f.Close())
}

// AddProgram builds vblk-ep in the folder, gives it to the endpoint as a command, and
// adds a disk. It runs in the repository.
func (c *Config) AddProgram(ctx context.Context, dir string) error {
	root, err := Repository()
	if err != nil {
		return err
	}
	program := filepath.Join(dir, "vblk-ep")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, "./cmd/vblk-ep")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build vblk-ep: %w\n%s", err, out)
	}
	if c.EP.Files == nil {
		c.EP.Files = make(map[string]string)
	}
	c.EP.Files["vblk-ep"] = program
	return c.AddDisk(dir)
}

// What Partition makes.
const (
	diskSize    = 256 << 20
	firstSize   = 64 << 20
	secondStart = 65 << 20
	secondSize  = 128 << 20
)

// Partition makes two partitions on the endpoint's disk, /dev/vda1 and /dev/vda2. Behind
// the second one there is room to grow.
func (p *Pair) Partition(ctx context.Context) error {
	_, err := p.EP().Run(ctx, fmt.Sprintf(`
		printf 'label: gpt\nstart=1M,size=%dM\nstart=%dM,size=%dM\n' | sfdisk -q --no-reread /dev/vda
		n=0
		until [ -b /dev/vda2 ]; do
			n=$((n + 1))
			[ $n -lt 1800 ]
			sleep 0.1
		done
	`, firstSize>>20, secondStart>>20, secondSize>>20))
	return err
}
