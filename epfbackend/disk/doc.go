// Package disk is what stands behind an exported function: a block device, a
// partition, a regular file, or nothing at all (null:SIZE).
//
// It stands at the end of the line: epfbackend hands it operations over memory
// that is lent for as long as they run, guest memory where that is mapped, and
// gets results back as errno values, to be translated there into status bytes.
//
// A Store is one disk. Open says what the disk can (Info) and refuses what must
// not be served: a disk that is in use, one that is no disk, a size that cannot
// be offered. Each worker makes itself an Engine on the store: io_uring, or the
// plain system calls where the kernel refuses that. What an operation means, how
// it is cut into system calls and what is tried when one is not supported, is
// written once, in plan.go, for both.
//
// Emulate stacks on any store whose blocks are larger than what a host is to see. It
// is a store of its own, and leaves whole blocks to the engine below.
//
// The package never reads or writes outside the disk's size, never writes to a
// disk that was opened read-only, never changes the size of a file, and never
// looks into the data.
package disk
