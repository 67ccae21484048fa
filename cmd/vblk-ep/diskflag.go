package main

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
)

// diskSpec is one --disk: what to open, and how to present it.
type diskSpec struct {
	path  string
	open  disk.Options
	offer epfbackend.Options
}

// diskFlag collects the --disk flags. It implements flag.Value.
type diskFlag []diskSpec

func (d *diskFlag) String() string { return "" }

func (d *diskFlag) Set(s string) error {
	spec, err := parseDisk(s)
	if err == nil {
		*d = append(*d, spec)
	}
	return err
}

// diskOptions maps each option of a disk to what it does. The value of an option
// without one is empty.
var diskOptions = map[string]func(spec *diskSpec, value string) error{
	"readonly": func(spec *diskSpec, v string) error {
		on, err := parseSwitch(v)
		spec.open.ReadOnly = on
		return err
	},
	"serial": func(spec *diskSpec, v string) error {
		spec.offer.Serial = v
		return nil
	},
	"queues": func(spec *diskSpec, v string) (err error) {
		spec.offer.Queues, err = parseCount(v)
		return err
	},
	"queue-size": func(spec *diskSpec, v string) (err error) {
		spec.offer.QueueSize, err = parseCount(v)
		return err
	},
	"cache": func(spec *diskSpec, v string) (err error) {
		spec.offer.WriteThrough, err = choose(v, map[string]bool{"writeback": false, "writethrough": true})
		return err
	},
	"ring": func(spec *diskSpec, v string) (err error) {
		spec.offer.Rings, err = choose(v, map[string]epfbackend.RingFormats{
			"split": epfbackend.RingSplit, "packed": epfbackend.RingPacked, "both": epfbackend.RingBoth,
		})
		return err
	},
	"cpus": func(spec *diskSpec, v string) error {
		if (*cpuList)(&spec.offer.CPUs).Set(v) != nil {
			return errors.New("write a list of processors, each comma twice: 0,,2-3")
		}
		return nil
	},
	"direct": func(spec *diskSpec, v string) (err error) {
		spec.open.Direct, err = choose(v, map[string]disk.DirectMode{
			"auto": disk.DirectAuto, "on": disk.DirectOn, "off": disk.DirectOff,
		})
		return err
	},
	"block-size": func(spec *diskSpec, v string) error {
		if v == "native" {
			spec.open.BlockSize = 0
			return nil
		}
		n, err := disk.ParseSize(v)
		if err == nil && (n < 512 || n > 4096 || n&(n-1) != 0) {
			err = errors.New("choose native, 512, 1K, 2K or 4K")
		}
		spec.open.BlockSize = uint32(n)
		return err
	},
}

// parseDisk reads PATH[,OPTION[=VALUE]]...; a comma that belongs to the path or
// to a value is written twice.
func parseDisk(s string) (diskSpec, error) {
	parts := splitCommas(s)
	spec := diskSpec{path: parts[0]}
	if spec.path == "" {
		return spec, usageError("--disk %q names no disk: write --disk PATH", s)
	}
	for _, part := range parts[1:] {
		name, value, _ := strings.Cut(part, "=")
		set, ok := diskOptions[name]
		if !ok {
			return spec, usageError("--disk %s: unknown option %q: choose %s", spec.path, name, listOf(diskOptions))
		}
		if err := set(&spec, value); err != nil {
			return spec, usageError("--disk %s: %s=%s: %v", spec.path, name, value, err)
		}
	}
	if err := spec.offer.Check(); err != nil {
		return spec, usageError("--disk %s: %v", spec.path, err)
	}
	return spec, nil
}

// splitCommas splits s at single commas; two in a row stand for one.
func splitCommas(s string) []string {
	parts := []string{""}
	for i := 0; i < len(s); i++ {
		last := &parts[len(parts)-1]
		switch {
		case s[i] != ',':
			*last += s[i : i+1]
		case i+1 < len(s) && s[i+1] == ',':
			*last += ","
			i++
		default:
			parts = append(parts, "")
		}
	}
	return parts
}

func parseCount(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, errors.New("write a whole number above 0")
	}
	return n, nil
}

func parseSwitch(s string) (bool, error) {
	if s == "" {
		return true, nil
	}
	return choose(s, map[string]bool{"on": true, "off": false})
}

func choose[T any](s string, choices map[string]T) (T, error) {
	v, ok := choices[s]
	if !ok {
		return v, errors.New("choose " + listOf(choices))
	}
	return v, nil
}

// listOf names the keys of m in alphabetical order.
func listOf[T any](m map[string]T) string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
