package disk

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// nullStore holds nothing.
type nullStore struct {
	t    target
	info Info
}

func openNull(path, size string, o Options) (Store, error) {
	block := max(o.BlockSize, 512)
	n, err := ParseSize(size)
	if err != nil || n <= 0 || n%int64(block) != 0 {
		return nil, &Error{
			Path: path, Kind: ErrSize, What: "is not a size that can be served",
			Mend: fmt.Sprintf("write null:SIZE with a multiple of %d, or a suffix as in null:10G", block),
		}
	}
	s := &nullStore{}
	s.t.readOnly = o.ReadOnly
	s.t.size.Store(n)
	everything := RangeLimits{Supported: true, Granularity: block, MaxBytes: quickRange}
	s.info = Info{
		Path: path, Kind: Null, Size: n, LogicalBlock: block, PhysicalBlock: block, MinIO: block,
		ReadOnly: o.ReadOnly, Exclusive: true, DirectWhy: "there is nothing to access",
		Discard: everything, WriteZeroes: everything, ZeroUnmaps: true, Serial: "null",
	}
	return s, nil
}

const sizeUnits = "KMGTPE"

// ParseSize reads a size in bytes as people write it: 4096, 512M, 1G. Units are
// powers of 1024.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, sizeUnits+strings.ToLower(sizeUnits))
	unit, shift := strings.ToUpper(s[len(digits):]), 0
	if unit != "" {
		shift = 10 * (1 + strings.Index(sizeUnits, unit))
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || len(unit) > 1 || n < 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is not a size: write 4096, 512M or 1G", s)
	}
	return n << shift, nil
}

func (s *nullStore) Info() Info { return s.info }

func (s *nullStore) NewEngine(_ EngineKind, depth, doorbell int) (Engine, error) {
	if depth < 1 || depth > MaxDepth {
		return nil, fmt.Errorf("engine of depth %d: %w", depth, unix.EINVAL)
	}
	return newNullEngine(&s.t, depth, doorbell), nil
}

func (s *nullStore) Refresh() (bool, error) { return false, nil }
func (s *nullStore) Flush() error           { return nil }
func (s *nullStore) Close() error           { return nil }
