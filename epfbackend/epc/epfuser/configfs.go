package epfuser

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What can be missing. Each error says in one sentence what, and the mend.
var (
	ErrNoController = errors.New("this machine has no PCI endpoint controller")
	ErrNoDriver     = errors.New("the kernel has no driver pci-epf-user")
	ErrNotRoot      = errors.New("endpoint controllers are for root only")
	ErrTaken        = errors.New("the function is taken by a running server")
	ErrStarted      = errors.New("the endpoint controller is started for other functions")
	ErrChoose       = errors.New("which endpoint controller")
	ErrFull         = errors.New("the endpoint controller has no function left")
	ErrLeft         = errors.New("the function that a dead server has left cannot be gone on with as it is")
)

const (
	configRoot = "/sys/kernel/config"
	classRoot  = "/sys/class/pci_epc"
	nodeRoot   = "/dev/pci-epf-user"
	driverName = "pci_epf_user"
	moduleName = "pci-epf-user"
)

// Controllers lists the endpoint controllers of this machine. It changes nothing.
func Controllers() []string {
	for _, dir := range []string{filepath.Join(configRoot, "pci_ep/controllers"), classRoot} {
		if names := list(dir); len(names) > 0 {
			return names
		}
	}
	return nil
}

func list(dir string) (names []string) {
	entries, _ := os.ReadDir(dir) // what is not there has no entries
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// choose returns the controller that is meant, "" meaning the only one.
func choose(want string, have []string) (string, error) {
	switch {
	case len(have) == 0:
		return "", fmt.Errorf("%w, or its driver is not loaded, or it is set up as a host in the device tree", ErrNoController)
	case want == "" && len(have) == 1:
		return have[0], nil
	case want == "":
		return "", fmt.Errorf("%w? there are %s: add --epc NAME", ErrChoose, strings.Join(have, ", "))
	case !slices.Contains(have, want):
		return "", fmt.Errorf("%w: there is no %s, but %s", ErrNoController, want, strings.Join(have, ", "))
	}
	return want, nil
}

// config is the kernel's configuration of endpoints: the folder pci_ep in configfs.
type config string

// openConfig makes configfs available.
func openConfig() (config, error) {
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("%w: run as root", ErrNotRoot)
	}
	c := config(filepath.Join(configRoot, "pci_ep"))
	if !exists(string(c)) {
		_ = unix.Mount("configfs", configRoot, "configfs", 0, "") // what it was for is looked at
	}
	if !exists(string(c)) {
		return "", fmt.Errorf("%w: the kernel has no %s: it needs CONFIG_PCI_ENDPOINT_CONFIGFS, and the controller's driver in endpoint mode",
			ErrNoController, c)
	}
	return c, nil
}

// openDriver makes sure that the driver of our functions is there.
func (c config) openDriver() error {
	if !exists(c.functions()) {
		_ = exec.Command("modprobe", moduleName).Run()
	}
	if !exists(c.functions()) {
		return fmt.Errorf("%w: install the kernel of kernel-patches/series, or load the module", ErrNoDriver)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (c config) functions() string           { return filepath.Join(string(c), "functions", driverName) }
func (c config) function(name string) string { return filepath.Join(c.functions(), name) }
func (c config) controllers() []string       { return list(filepath.Join(string(c), "controllers")) }

func (c config) controller(name string) string { return filepath.Join(string(c), "controllers", name) }

func (c config) link(controller, n string) string { return filepath.Join(c.controller(controller), n) }

// started says whether a controller is.
func (c config) started(controller string) (bool, error) {
	b, err := os.ReadFile(c.link(controller, "start"))
	if err != nil {
		return false, err
	}
	return strings.TrimSpace(string(b)) == "1", nil
}

// start starts or stops a controller, if it is not as wanted already.
func (c config) start(controller string, on bool) error {
	if is, err := c.started(controller); err != nil || is == on {
		return err
	}
	text := "0"
	if on {
		text = "1"
	}
	return write(c.link(controller, "start"), text)
}

// write writes an attribute.
func write(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// bound lists the functions of a controller.
func (c config) bound(controller string) (names []string) {
	entries, _ := os.ReadDir(c.controller(controller))
	for _, e := range entries {
		if e.Type()&fs.ModeSymlink != 0 {
			names = append(names, e.Name())
		}
	}
	return names
}

// create makes a function that uses that many DMA channels each way; -1: as the driver
// likes it.
func (c config) create(name string, channels int) error {
	if err := os.Mkdir(c.function(name), 0o755); err != nil {
		return fmt.Errorf("create function %s: %w", name, err)
	}
	device, err := c.device(name)
	if err == nil && channels >= 0 {
		err = write(filepath.Join(c.function(name), device, "dma_channels"), strconv.Itoa(channels))
	}
	if err != nil {
		return fmt.Errorf("create function %s: %w", name, errors.Join(err, os.Remove(c.function(name))))
	}
	return nil
}

// device returns the name of a function's device, which a folder in the function's
// tells.
func (c config) device(name string) (string, error) {
	for _, entry := range list(c.function(name)) {
		if strings.HasPrefix(entry, driverName+".") {
			return entry, nil
		}
	}
	return "", fmt.Errorf("%s has no device: %w", c.function(name), fs.ErrNotExist)
}

// node returns the path of the device node of a function that is bound.
func (c config) node(name string) (string, error) {
	device, err := c.device(name)
	return filepath.Join(nodeRoot, device), err
}

// bind gives a function to a controller.
func (c config) bind(name, controller string) error {
	if err := os.Symlink(c.function(name), c.link(controller, name)); err != nil {
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%w: %s has %d bound: remove one that is not needed, its link in %s first: %w",
				ErrFull, controller, len(c.bound(controller)), c.controller(controller), err)
		}
		return fmt.Errorf("bind function %s to %s: %w", name, controller, err)
	}
	return nil
}

// remove unbinds a function and removes it. What is not there is removed already.
func (c config) remove(name, controller string) error {
	var errs []error
	for _, path := range []string{c.link(controller, name), c.function(name)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
