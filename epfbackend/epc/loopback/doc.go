// Package loopback is an endpoint controller without a link: it joins a function
// and a host (an rc.Bus) in one process.
//
// It keeps the rules of a real controller: the host's accesses reach the function
// one at a time, memory leaves the map only while the function is paused,
// interrupts go where the configuration space says. Beyond that it goes wrong on
// demand (Faults): memory that cannot be lent, transfers that fail or take long,
// interrupts that come late, a function that is unplugged in the middle.
//
// It is for tests and measurements, and knows nothing of virtio.
package loopback
