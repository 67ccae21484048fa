// Package guest holds what runs inside a guest beside its work: the first
// process, and the commands with which the work speaks to the host. They are
// shell scripts for busybox, and reach the guest in its initial file system.
//
// The package does nothing on the host but carry them.
package guest

import _ "embed"

// Init is the guest's first process.
//
//go:embed init
var Init []byte

// Say is the command "say TEXT...", which tells the host one line.
//
//go:embed say
var Say []byte

// Hear is the command "hear", which waits for a line of the host and prints it.
//
//go:embed hear
var Hear []byte

// Expect is the command "expect TEXT...", which waits for a line of the host
// and fails unless it is TEXT.
//
//go:embed expect
var Expect []byte

// Udev is the command "udev", which starts udev and waits for it.
//
//go:embed udev
var Udev []byte
