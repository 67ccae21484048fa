package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vblk-ep/vblk-ep/epfbackend/epc/epfuser"
)

const vfioUserScheme = "vfio-user:"

// slotFlag is --epc: which controller the functions are on, and what it is to do
// for them.
type slotFlag struct {
	given bool
	slot  virtualSlot
	real  *epfuser.Options // nil: virtual slots, if it was given
}

// virtualSlot is a slot at a socket.
type virtualSlot struct {
	socket   string // of the first one; empty: by the disk's name
	trapFree bool
	narrow   bool // the doorbell takes 16 bits
}

func (s *slotFlag) String() string { return "" }

// Set reads vfio-user:[SOCKET][,trap-free[,doorbell=16]] or
// [CONTROLLER][,dma=off][,doorbell=KIND][,keep]. Of several flags the last one counts.
func (s *slotFlag) Set(text string) error {
	*s = slotFlag{given: true}
	if rest, ok := strings.CutPrefix(text, vfioUserScheme); ok {
		return s.slot.set(text, splitCommas(rest))
	}
	parts := splitCommas(text)
	if text == "" || strings.ContainsAny(parts[0], ":/") {
		return usageError("--epc %s: write --epc vfio-user:[SOCKET][,trap-free], or the name of an endpoint controller", text)
	}
	s.real = &epfuser.Options{Controller: parts[0]}
	for _, option := range parts[1:] {
		if err := s.controllerOption(text, option); err != nil {
			return err
		}
	}
	return nil
}

func (s *slotFlag) controllerOption(text, option string) error {
	name, value, _ := strings.Cut(option, "=")
	switch {
	case option == "dma=auto", option == "dma=off":
		s.real.NoDMA = value == "off"
		return nil
	case option == "keep":
		s.real.Keep = true
		return nil
	case name == "doorbell":
		for _, d := range []epfuser.Doorbell{epfuser.DoorbellAuto, epfuser.DoorbellITS, epfuser.DoorbellShared, epfuser.DoorbellPoll} {
			if value == string(d) {
				s.real.Doorbell = d
				return nil
			}
		}
		return usageError("--epc %s: choose doorbell=auto, its, shared or poll", text)
	}
	return usageError("--epc %s: unknown option %q: choose dma=auto|off, doorbell=auto|its|shared|poll or keep", text, option)
}

// set takes what --epc says behind its scheme: [SOCKET][,trap-free[,doorbell=16]].
func (v *virtualSlot) set(text string, parts []string) error {
	v.socket = parts[0]
	for _, option := range parts[1:] {
		switch option {
		case "trap-free":
			v.trapFree = true
		case "doorbell=16", "doorbell=32":
			v.narrow = option == "doorbell=16"
		default:
			return usageError("--epc %s: unknown option %q: choose trap-free, doorbell=16 or doorbell=32", text, option)
		}
	}
	if v.narrow && !v.trapFree {
		return usageError("--epc %s: doorbell=16 makes a difference to trap-free slots only: add trap-free", text)
	}
	return nil
}

// resolve decides where the functions go if --epc was not given: to the endpoint
// controller, if this machine has one.
func (s *slotFlag) resolve() {
	if !s.given && len(epfuser.Controllers()) > 0 {
		s.real = new(epfuser.Options)
	}
}

// socketPaths says where the virtual slots of the disks are: where --epc wants
// them, else at a path that follows from the disk's name.
func socketPaths(slot virtualSlot, disks []diskSpec) []string {
	if slot.socket == "" {
		return defaultSockets(disks)
	}
	paths := make([]string, len(disks))
	for i := range disks {
		paths[i] = numbered(slot.socket, i)
	}
	return paths
}

func defaultSockets(disks []diskSpec) []string {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if os.Geteuid() == 0 || dir == "" {
		dir = "/run"
	}
	paths := functionNames(disks, ".sock")
	for i := range paths {
		paths[i] = filepath.Join(dir, "vblk-ep", paths[i])
	}
	return paths
}

// functionNames names a function for each disk: nvme0n1p2, nvme0n1p2-1. All names
// are different.
func functionNames(disks []diskSpec, ext string) []string {
	taken := map[string]bool{}
	names := make([]string, len(disks))
	for i, d := range disks {
		name := slotName(d.path) + ext
		for n := 0; names[i] == "" || taken[names[i]]; n++ {
			names[i] = numbered(name, n)
		}
		taken[names[i]] = true
	}
	return names
}

// slotName makes a file name of a disk's path: /dev/nvme0n1p2 is nvme0n1p2.
func slotName(path string) string {
	if kind, _, ok := strings.Cut(path, ":"); ok && kind == "null" {
		return kind
	}
	return strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
}

// numbered tells the paths of several functions apart: a.sock, a-1.sock, a-2.sock.
func numbered(path string, i int) string {
	if i == 0 {
		return path
	}
	ext := filepath.Ext(path)
	return fmt.Sprintf("%s-%d%s", strings.TrimSuffix(path, ext), i, ext)
}
