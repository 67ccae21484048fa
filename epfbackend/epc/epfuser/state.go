package epfuser

import (
	"bytes"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/epfdev"
)

// The memory that a function keeps for us begins with a mark, and with the name that
// we gave the function: its device has another one, which is the kernel's.
const (
	stateMark = "vblk-ep\x01"
	nameLen   = 64
	stateLen  = len(stateMark) + nameLen
)

// nameOf returns the name of a function that we have made, "" if we have not.
func nameOf(d *epfdev.Device) (name string) {
	_ = withState(d, func(b []byte) {
		if text, ok := bytes.CutPrefix(b, []byte(stateMark)); ok {
			text, _, _ = bytes.Cut(text, []byte{0})
			name = string(text)
		}
	})
	return name
}

// setName marks a function as ours.
func setName(d *epfdev.Device, name string) error {
	return withState(d, func(b []byte) {
		clear(b)
		copy(b[len(stateMark):len(b)-1], name)
		copy(b, stateMark)
	})
}

// withState lets f use the memory that d keeps for us.
func withState(d *epfdev.Device, f func(b []byte)) error {
	b, err := d.MapState(unix.Getpagesize())
	if err != nil {
		return err
	}
	f(b[:stateLen])
	return unix.Munmap(b)
}
