// Package shm gives access to memory that another party reads and writes at the
// same time: guest RAM, rings, BAR pages.
//
// It holds the two things that the rest of the project must not do itself:
// mapping (Mapping, with one explicit owner) and ordered access (Window). A
// Window never copies and never checks what the other side does; it only
// guarantees that each access is a single, naturally aligned load or store and
// that the documented ordering holds. It knows nothing of rings or devices.
//
// Mapped memory can vanish: when the other side truncates the file behind a
// mapping, an access raises SIGBUS. Guard turns that into an error.
package shm
