package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const vfioUserScheme = "vfio-user:"

// slotFlag is --epc: which controller the functions are on, and what it is to do
// for them.
type slotFlag struct {
	socket   string // of the first virtual slot; empty: by the disk's name
	trapFree bool
	narrow   bool // the doorbell takes 16 bits
}

func (s *slotFlag) String() string { return "" }

// Set reads vfio-user:[SOCKET][,trap-free[,doorbell=16]].
func (s *slotFlag) Set(text string) error {
	rest, ok := strings.CutPrefix(text, vfioUserScheme)
	parts := splitCommas(rest)
	if !ok || (parts[0] == "" && len(parts) == 1) {
		return usageError("--epc %s: write --epc vfio-user:SOCKET[,trap-free]", text)
	}
	s.socket = parts[0]
	for _, option := range parts[1:] {
		switch option {
		case "trap-free":
			s.trapFree = true
		case "doorbell=16", "doorbell=32":
			s.narrow = option == "doorbell=16"
		default:
			return usageError("--epc %s: unknown option %q: choose trap-free, doorbell=16 or doorbell=32", text, option)
		}
	}
	if s.narrow && !s.trapFree {
		return usageError("--epc %s: doorbell=16 makes a difference to trap-free slots only: add trap-free", text)
	}
	return nil
}

// controllers lists the endpoint controllers of this machine.
func controllers() []string {
	entries, err := os.ReadDir("/sys/class/pci_epc")
	if err != nil {
		return nil // a kernel without the endpoint framework
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// socketPaths says where the virtual slots of the disks are: where --epc wants
// them, else at a path that follows from the disk's name.
func socketPaths(slot slotFlag, disks []diskSpec) ([]string, error) {
	if slot == (slotFlag{}) {
		if found := controllers(); len(found) > 0 {
			return nil, fmt.Errorf("endpoint controller %s cannot be used yet: add --epc vfio-user:SOCKET for a virtual slot",
				found[0])
		}
	}
	if slot.socket == "" {
		return defaultSockets(disks), nil
	}
	paths := make([]string, len(disks))
	for i := range disks {
		paths[i] = numbered(slot.socket, i)
	}
	return paths, nil
}

func defaultSockets(disks []diskSpec) []string {
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if os.Geteuid() == 0 || dir == "" {
		dir = "/run"
	}
	seen := map[string]int{}
	paths := make([]string, len(disks))
	for i, d := range disks {
		name := slotName(d.path)
		paths[i] = numbered(filepath.Join(dir, "vblk-ep", name+".sock"), seen[name])
		seen[name]++
	}
	return paths
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
