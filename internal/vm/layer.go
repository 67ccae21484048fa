package vm

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// layer copies programs out of an unpacked distribution into an archive,
// together with the shared libraries they need.
type layer struct {
	root string   // the unpacked distribution
	libs []string // where its shared libraries are, relative to root
	out  cpioArchive
}

// program adds the program with its loader and libraries. Symbolic links are
// kept and what they lead to is added.
func (l *layer) program(name string) error {
	if l.out.has(name) {
		return nil
	}
	full := filepath.Join(l.root, name)
	info, err := os.Lstat(full)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := os.Readlink(full)
		if err != nil {
			return err
		}
		l.out.symlink(name, target)
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		return l.program(target)
	}
	data, err := os.ReadFile(full)
	if err != nil {
		return err
	}
	l.out.file(name, info.Mode(), data)
	return l.needed(full)
}

// needed adds what the ELF file asks its loader for, and the loader.
func (l *layer) needed(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		var format *elf.FormatError
		if errors.As(err, &format) {
			return nil // a script
		}
		return err
	}
	defer func() { _ = f.Close() }()
	if interp := f.Section(".interp"); interp != nil {
		loader, err := interp.Data()
		if err != nil {
			return err
		}
		// Packages of a merged-/usr distribution unpack below /usr only.
		if err := l.program(path.Join("usr", strings.TrimRight(string(loader), "\x00"))); err != nil {
			return err
		}
	}
	names, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range names {
		dir, err := l.find(name)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		if err := l.program(path.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// find returns the folder, relative to root, that holds the library.
func (l *layer) find(lib string) (string, error) {
	for _, dir := range l.libs {
		if found, err := exists(filepath.Join(l.root, dir, lib)); found || err != nil {
			return dir, err
		}
	}
	return "", fmt.Errorf("library %s is in none of %s", lib, strings.Join(l.libs, ", "))
}
