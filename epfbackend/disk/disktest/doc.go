// Package disktest makes disks fail and dawdle on demand, for tests of what
// stands above them: an error of the disk must reach the guest as an I/O error,
// and nothing else may happen.
//
// It wraps a real store; what no rule touches goes through unchanged. It is no
// disk of its own, and no part of a program that serves disks.
package disktest
