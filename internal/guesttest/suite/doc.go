// Package suite holds what must be true of a disk that we serve, whatever it is
// served through: what the host's kernel makes of it, that what the host writes is
// what it reads and what is on the disk behind the server, and that this stays so when
// the driver goes and comes, and when the disk grows.
//
// It stands below the tests with guests: internal/guesttest runs it on the slot that a
// monitor gives its guest, internal/lab/machines on the link between an endpoint and a
// root complex. Its scripts run in any guest of internal/vm, and those that look
// behind the server also on this machine.
//
// It starts no guest and no server, and does not know which there are. What differs
// between the two places is in a [Disk].
package suite
