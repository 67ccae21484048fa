package vm

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// cpioArchive collects files in the "newc" format that the kernel unpacks as
// its initial file system (Documentation/driver-api/early-userspace). Archives
// may be concatenated; a later one overwrites what an earlier one brought.
type cpioArchive struct {
	buf  bytes.Buffer
	seen map[string]bool
	ino  int
}

// The file types of stat(2)'s st_mode.
const (
	modeDir     = 0o040000
	modeRegular = 0o100000
	modeSymlink = 0o120000
)

// file adds a regular file and the folders above it.
func (a *cpioArchive) file(name string, perm fs.FileMode, data []byte) {
	a.add(name, modeRegular|uint32(perm.Perm()), data)
}

// symlink adds a symbolic link and the folders above it.
func (a *cpioArchive) symlink(name, target string) {
	a.add(name, modeSymlink|0o777, []byte(target))
}

// mkdir adds a folder and the folders above it.
func (a *cpioArchive) mkdir(name string) {
	a.add(name, modeDir|0o755, nil)
}

// has says whether the name was added.
func (a *cpioArchive) has(name string) bool { return a.seen[clean(name)] }

// clean makes every name relative to the root.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// add appends one entry once; the first of a name wins.
func (a *cpioArchive) add(name string, mode uint32, data []byte) {
	name = clean(name)
	if name == "" || a.seen[name] {
		return
	}
	if parent := path.Dir(name); parent != "." {
		a.mkdir(parent)
	}
	if a.seen == nil {
		a.seen = make(map[string]bool)
	}
	a.seen[name] = true
	a.ino++
	a.entry(name, mode, a.ino, data)
}

// entry writes header, name and data, the latter two padded to four bytes.
func (a *cpioArchive) entry(name string, mode uint32, ino int, data []byte) {
	const links, uid, gid, mtime, dev = 1, 0, 0, 0, 0
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		ino, mode, uid, gid, links, mtime, len(data), dev, dev, dev, dev, len(name)+1, 0, name)
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *cpioArchive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

// bytes ends the archive and returns it, padded so that another may follow.
func (a *cpioArchive) bytes() []byte {
	a.entry("TRAILER!!!", 0, 0, nil)
	return a.buf.Bytes()
}
