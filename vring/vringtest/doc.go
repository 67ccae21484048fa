// Package vringtest plays the driver of a virtqueue: it lays a split or a packed
// virtqueue out in guest memory of its own, makes descriptor chains available,
// collects used ones and decides about notifications, as a well-behaved driver
// does, or writes whatever a hostile one might.
//
// It serves unit, property, fuzz and bench tests of package vring, and the
// host side of tests that run a whole device. It never uses package testing, and
// in a steady state it allocates nothing.
package vringtest
