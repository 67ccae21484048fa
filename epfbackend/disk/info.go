package disk

// Kind says what a disk is made of.
type Kind uint8

// Kinds of disk.
const (
	BlockDevice Kind = iota
	Partition
	File
	Null
)

// String returns the kind in words.
func (k Kind) String() string {
	switch k {
	case BlockDevice:
		return "block device"
	case Partition:
		return "partition"
	case File:
		return "file"
	case Null:
		return "null"
	}
	return "unknown"
}

// Info describes a disk. Sizes and alignments are in bytes.
type Info struct {
	Path string
	Kind Kind

	Size            int64  // a multiple of LogicalBlock
	LogicalBlock    uint32 // the smallest unit of a request: 512 to 65536, a power of two
	PhysicalBlock   uint32 // the smallest unit that is written without reading first
	NativeBlock     uint32 // the disk's own logical block, where it is larger than what is presented; else 0
	MinIO, OptIO    uint32 // preferred units; OptIO 0: none reported
	AlignmentOffset uint32 // of the first aligned physical block

	// Exclusive says that nobody who keeps to such claims writes to the disk but us, and
	// that no write of a process that did is under way: what is claimed is the open file
	// itself (O_EXCL, or an OFD lock), which each of its requests, and each io_uring that
	// it is registered with, keeps open until it has ended, also after a SIGKILL. A
	// read-only file is shared with others who read; to go on after another server that
	// is enough, for only writes could still change anything.
	Exclusive bool

	ReadOnly   bool
	Rotational bool

	// Direct says whether transfers bypass the page cache, and DirectWhy why or why
	// not. MemAlign is what addresses of memory must be multiples of for that,
	// OffsetAlign offsets and lengths on the disk. Memory that is not is copied; parts
	// of blocks are read, modified and written.
	Direct                bool
	DirectWhy             string
	MemAlign, OffsetAlign uint32

	Discard     RangeLimits
	WriteZeroes RangeLimits
	SecureErase RangeLimits
	ZeroUnmaps  bool // WriteZeroes with Unmap may give space back

	Lifetime *Lifetime // nil where the device does not tell

	// Serial identifies the disk: the device's own serial number where it has one,
	// else something that is the same each time. At most 20 printable ASCII bytes.
	Serial string
}

// RangeLimits describes an operation on a range without data.
type RangeLimits struct {
	Supported   bool
	Granularity uint32 // the unit in which it has an effect
	Alignment   uint32 // of the first such unit
	MaxBytes    int64  // the longest range that takes a bounded time
}

// Lifetime is what an eMMC tells of its wear, as in JESD84-B51 (EXT_CSD
// PRE_EOL_INFO and DEVICE_LIFE_TIME_EST_TYP_A and _B), which is also what virtio
// 1.4 §5.2.6 (VIRTIO_BLK_T_GET_LIFETIME) passes on.
type Lifetime struct {
	PreEOL       uint16 // 1 normal, 2 warning (80 % of reserved blocks used), 3 urgent
	TypeA, TypeB uint16 // 1: 0–10 % of the life used … 10: 90–100 %, 11: exceeded; 0: not told
}
