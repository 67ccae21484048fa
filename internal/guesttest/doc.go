// Package guesttest holds what real guests prove against the real program: stock
// kernels and firmware on the devices of "vblk-ep serve", run as an operator runs
// it, and looked at from both sides.
//
// It stands at the end of the line, above cmd/vblk-ep, and only tests live here.
// A test starts a server on disks, boots guests on its sockets (see internal/vm),
// has them work, and compares what they report with what was configured, and the
// disk outside with what they wrote. Nothing that vblk-ep is made of is
// imported: what holds here holds for the program as it is run.
//
// Every server is also checked in what it was not asked: it logs nothing worse
// than what the test expects, keeps no descriptor of a guest that has gone, and
// exits with status 0 on SIGTERM. Unless a test measures memory, the server is
// built with the race detector. Kernels must have nothing to complain of about
// the device, except where a test breaks the disk on purpose.
//
// The package never skips: what is missing is an error. It needs root, for loop
// devices and mounts.
package guesttest
