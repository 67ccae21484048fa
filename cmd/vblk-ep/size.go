package main

import "fmt"

// formatSize writes a size in bytes exactly, in the largest unit that divides it.
func formatSize(n int64) string {
	const units = "KMGTPE"
	unit := 0
	for m := n; m >= 1024 && m%1024 == 0 && unit < len(units); m /= 1024 {
		unit++
	}
	if unit > 0 {
		return fmt.Sprintf("%d %ciB", n>>(10*unit), units[unit-1])
	}
	return fmt.Sprintf("%d bytes", n)
}
