package disk

import (
	"errors"
	"strings"
)

// What can be wrong with a disk when it is opened; errors.Is finds these in an
// *Error.
var (
	ErrNotFound    = errors.New("no such disk")
	ErrNotDisk     = errors.New("not a disk")
	ErrPermission  = errors.New("permission denied")
	ErrBusy        = errors.New("in use")
	ErrReadOnly    = errors.New("read-only")
	ErrSize        = errors.New("size cannot be served")
	ErrUnsupported = errors.New("not supported")
)

// Error says in one sentence what is wrong with a disk, and the mend.
type Error struct {
	Path string
	What string // "in use: mounted on /home (ext4)"
	Mend string // "unmount it, or insist with --force"; may be empty
	Kind error  // one of the errors above
	Err  error  // what the system said, may be nil
}

// Error returns the sentence.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Path)
	b.WriteString(": ")
	b.WriteString(e.What)
	if e.Mend != "" {
		b.WriteString("; ")
		b.WriteString(e.Mend)
	}
	return b.String()
}

// Unwrap makes the kind and what the system said visible to errors.Is.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}
