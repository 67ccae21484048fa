// Package vm boots guests with stock kernels and runs work inside them, so that
// tests meet the drivers that users have and not a model of them.
//
// It stands beside the line, not in it: only tests and the demonstration import
// it, and it imports nothing of this module. A test starts whatever serves the
// device (usually a vfio-user socket), names it in [Config].Devices and calls
// [Run] with a shell script or a Go test binary as the guest's work. Where the
// test has to act while the guest runs (resize a disk, kill a server, reset the
// machine), [Start] gives it a [VM] with a line-based channel to the work and
// with QMP, and [StartShell] a [Shell], whose work is to run scripts as they come.
//
// The tools come from Debian's archive through the machine's own apt, which
// also verifies them: a QEMU that knows vfio-user-pci, the programs of the
// guest, firmware, and kernels that are exactly the packaged ones. Nothing is installed:
// packages are unpacked into a cache outside the checkout (see [CacheDir]), and
// neither root nor a chroot is needed. What is in the cache is used without
// asking the network. [Fetch] fills it ahead of time with what most need, and
// [FetchAll] with everything.
//
// A guest is a 64-bit x86 or, with [ARM64], a 64-bit Arm machine, on any machine
// that builds this module. Where the matter is what firmware makes of a disk,
// [Config].Firmware chooses it, BootDisk starts it without a kernel, and
// [BootImage] is a disk that all of them boot.
//
// A run has succeeded only when the guest said so over a serial port of its
// own. Silence, a panic, an oops, a time-out and a QEMU that ends early are
// errors, whatever was printed before.
//
// The package never skips: what it needs and does not have, it fetches or
// reports as an error. It never touches the machine's installed packages, its
// network configuration or its block devices.
package vm
