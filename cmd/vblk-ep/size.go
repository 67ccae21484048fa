package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

const sizeUnits = "KMGTPE"

// parseSize reads a size in bytes as people write it: 4096, 512M, 1G. Units are
// powers of 1024.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, sizeUnits+strings.ToLower(sizeUnits))
	shift := 0
	if unit := s[len(digits):]; len(unit) == 1 {
		shift = 10 * (1 + strings.Index(sizeUnits, strings.ToUpper(unit)))
	} else if unit != "" {
		return 0, fmt.Errorf("%q is not a size: write 4096, 512M or 1G", s)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is not a size: write 4096, 512M or 1G", s)
	}
	return n << shift, nil
}

// formatSize writes a size in bytes exactly, in the largest unit that divides
// it, or with its size in a rounded unit beside the bytes.
func formatSize(n int64) string {
	unit := 0
	for m := n; m >= 1024 && m%1024 == 0 && unit < len(sizeUnits); m /= 1024 {
		unit++
	}
	if unit > 0 {
		return fmt.Sprintf("%d %ciB", n>>(10*unit), sizeUnits[unit-1])
	}
	return fmt.Sprintf("%d bytes", n)
}
