// Package virtio holds what the virtio specification (1.4) says of every device
// type and transport: feature bits and the rules for accepting them (§2.2, §6),
// the device status field and its legal transitions (§2.1, §3.1.1).
//
// It is data. It does no I/O, keeps no state and knows neither PCI (package
// virtiopci), nor disks (package virtioblk), nor rings (package vring).
package virtio
