package epc

// Late is what a Controller can be, too: one that tells of the end of a host when it is
// over. By then the next host's driver may have begun with what is memory in the BARs, or
// be done with it.
type Late interface {
	Controller

	// Settled says whether the function has been told, by Reset or HostGone, of all that
	// has happened to the host's end so far. A driver that was found to be ready before
	// it said yes is of the host that is there now.
	Settled() bool
}
