// Package disktest makes disks fail, dawdle and lose their power on demand, for
// tests of what stands above them: an error of the disk must reach the guest as an
// I/O error, and nothing else may happen; and what was promised to be on the disk
// must be there whenever the power is cut.
//
// Wrap puts faults before a real store; what no rule touches goes through unchanged.
// Volatile is a disk in memory with a write cache that is lost with the power, as
// adverse as a disk may be. A Ledger knows what may stand on a disk by what was asked
// of it, and a Load asks at random. No part of this is for programs that serve disks.
package disktest
