package vm

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// moduleTree is the modules of one kernel package. The package ships no index
// (one is made on installation), so dependencies come from the modules.
type moduleTree struct {
	dir        string            // …/lib/modules/VERSION
	files      map[string]string // module name → file, relative to dir
	decompress func(file string) ([]byte, error)
}

// module is one module with its dependencies.
type module struct {
	path string // relative to the tree, without a compression suffix
	data []byte
	deps []string // names, nearest first
}

// openModules lists the modules below dir. decompress returns the content of a
// file that ends in .xz.
func openModules(dir string, decompress func(string) ([]byte, error)) (*moduleTree, error) {
	t := &moduleTree{dir: dir, files: make(map[string]string), decompress: decompress}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		base, isModule := strings.CutSuffix(strings.TrimSuffix(d.Name(), ".xz"), ".ko")
		if !isModule {
			return nil
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		t.files[moduleName(base)] = rel
		return nil
	})
	if err == nil && len(t.files) == 0 {
		err = fmt.Errorf("no kernel modules below %s", dir)
	}
	return t, err
}

// moduleName is the name the kernel uses, which has no dashes.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// load returns the modules and everything they need. A name without a file is
// built into this kernel.
func (t *moduleTree) load(names ...string) (map[string]module, error) {
	got := make(map[string]module)
	var visit func(name string) error
	visit = func(name string) error {
		name = moduleName(name)
		file, ok := t.files[name]
		if _, done := got[name]; done || !ok {
			return nil
		}
		m, err := t.read(file)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		got[name] = m
		for _, dep := range m.deps {
			if err := visit(dep); err != nil {
				return err
			}
		}
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return got, nil
}

func (t *moduleTree) read(file string) (module, error) {
	full := filepath.Join(t.dir, file)
	var data []byte
	var err error
	if strings.HasSuffix(file, ".xz") {
		data, err = t.decompress(full)
	} else {
		data, err = os.ReadFile(full)
	}
	if err != nil {
		return module{}, err
	}
	deps, err := moduleDeps(data)
	return module{path: strings.TrimSuffix(file, ".xz"), data: data, deps: deps}, err
}

// moduleDeps reads the depends= entry of the module's .modinfo section.
func moduleDeps(data []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(moduleName(list), ","), nil
		}
	}
	return nil, nil
}

// modulesDep writes the index that modprobe reads: a module's file, a colon,
// and every file it needs, directly or not, those to be loaded last first.
func modulesDep(modules map[string]module) string {
	var index strings.Builder
	for _, name := range slices.Sorted(maps.Keys(modules)) {
		index.WriteString(modules[name].path + ":")
		var all []string
		var collect func(string)
		collect = func(n string) {
			for _, dep := range modules[n].deps {
				m, ok := modules[dep]
				if !ok {
					continue // built in
				}
				// A module that others need must be loaded before them.
				all = slices.DeleteFunc(all, func(p string) bool { return p == m.path })
				all = append(all, m.path)
				collect(dep)
			}
		}
		collect(name)
		for _, p := range all {
			index.WriteString(" " + p)
		}
		index.WriteByte('\n')
	}
	return index.String()
}
