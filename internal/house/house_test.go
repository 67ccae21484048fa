// Package house holds the project's own rules about its structure, as a test:
// which package may import which, and where unsafe may be.
package house

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/vblk-ep/vblk-ep/"

// floors lists the packages of the module from the ground up. A package imports
// only from floors below its own; a pattern stands for all that match it, the
// first match counts.
var floors = [][]string{
	{"internal/shm", "internal/blkio", "internal/eventfd", "internal/vm/guest", "internal/*/leaktest"},
	{"internal/uring", "internal/vfiouser", "internal/vm"},
	{"internal/epfdev"},
	{"virtio", "internal/vfiouser/irq"},
	{"virtio/*"},
	{"vring", "internal/lab"},
	{"vring/vringtest", "doorbell", "epfbackend/epc", "internal/lab/machines"},
	{"epfbackend/regfile", "epfbackend/disk"},
	{"epfbackend/disk/disktest", "internal/rc"},
	{"epfbackend", "internal/bench"},
	{"epfbackend/epc/*"},
	{"cmd/*", "internal/*", "internal/*/*", "internal/*/*/*"},
}

// banned lists imports that would be from a lower floor, or from outside, and
// still are wrong.
var banned = map[string][]string{
	"virtio":           {"golang.org/x/sys/unix", module + "internal/uring", module + "internal/vfiouser"},
	"virtio/*":         {"golang.org/x/sys/unix", module + "internal/uring", module + "internal/vfiouser"},
	"vring":            {"golang.org/x/sys/unix", module + "internal/uring", module + "internal/vfiouser"},
	"epfbackend/epc/*": {module + "epfbackend"},
}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []goPackage {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	require.NoError(t, err)
	var all []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		all = append(all, p)
	}
	require.Greater(t, len(all), 10)
	return all
}

func floorOf(name string) int {
	return slices.IndexFunc(floors, func(patterns []string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, name) })
	})
}

func matches(pattern, name string) bool {
	ok, _ := path.Match(pattern, name)
	return ok
}

func TestImportsGoOneWay(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		floor := floorOf(name)
		require.GreaterOrEqual(t, floor, 0, "%s stands on no floor: give it one", name)
		for _, i := range p.Imports {
			if imported, ours := strings.CutPrefix(i, module); ours {
				require.Less(t, floorOf(imported), floor, "%s imports %s", name, imported)
			}
			for pattern, list := range banned {
				if matches(pattern, name) {
					require.NotContains(t, list, i, "%s imports %s", name, i)
				}
			}
		}
	}
}

func TestUnsafeLivesInInternal(t *testing.T) {
	for _, p := range packages(t) {
		if !strings.HasPrefix(p.ImportPath, module+"internal/") {
			require.NotContains(t, p.Imports, "unsafe", "%s imports unsafe", p.ImportPath)
		}
	}
}
