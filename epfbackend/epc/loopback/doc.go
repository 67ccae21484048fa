// Package loopback is an endpoint controller without a link: it joins a function
// and a host (an rc.Bus) in one process.
//
// It keeps the rules of a real controller: the host's accesses reach the function
// one at a time, memory leaves the map only while the function is paused,
// interrupts go where the configuration space says. Beyond that it goes wrong on
// demand (Faults): memory that cannot be lent, transfers that fail or take long,
// interrupts that come late, a function that is unplugged in the middle.
//
// It can also be a model of an endpoint controller with a DMA engine (Engine): none of
// the host's memory is mapped, and all that the function does there takes a Link, in the
// time of a Clock. How long things take by that clock does not depend on the machine.
//
// It is for tests and measurements, and knows nothing of virtio.
package loopback
