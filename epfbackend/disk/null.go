package disk

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// nullStore holds nothing.
type nullStore struct {
	t    target
	info Info
}

func openNull(path, size string, o Options) (Store, error) {
	block := max(o.BlockSize, 512)
	n, ok := parseSize(size)
	if !ok || n <= 0 || n%int64(block) != 0 {
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

// parseSize parses a number of bytes with an optional suffix, a power of 1024.
func parseSize(s string) (int64, bool) {
	shift := 0
	if s != "" {
		switch s[len(s)-1] | 0x20 {
		case 'k':
			shift = 10
		case 'm':
			shift = 20
		case 'g':
			shift = 30
		case 't':
			shift = 40
		}
		if shift > 0 {
			s = s[:len(s)-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n<<shift>>shift != n {
		return 0, false
	}
	return n << shift, true
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
