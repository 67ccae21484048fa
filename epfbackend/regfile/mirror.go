package regfile

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// A device that does not see register accesses cannot answer each
// device_feature_select with its own word: device_feature is one word of memory,
// and whatever the driver selects, it reads that word. So the bits n, n+32, n+64
// and n+96 are offered together or not at all. Mirror is that word, worked out
// from what is wanted, and what it costs.

// Transport is what decides which feature bits a trap-free device can honour
// without knowing whether the driver accepted them.
type Transport struct {
	// Doorbell32 says that a notification may carry 32 bits of data. A doorbell
	// that is an interrupt controller's register takes 16.
	Doorbell32 bool
	// PackedRings says that the device serves packed virtqueues as well as split
	// ones and tells them apart by itself.
	PackedRings bool
	// ReadOnly says that the disk refuses writes.
	ReadOnly bool
	// Queues is the number of virtqueues, LogicalBlock the disk's logical block
	// size in bytes.
	Queues       int
	LogicalBlock uint32
}

// Mirror is the outcome: one word for every selection, and what follows from it.
type Mirror struct {
	Word    uint32          // what device_feature holds
	Offered virtio.Features // what a driver that selects 0 to 3 sees
	Lost    []Loss          // wanted bits that are not offered, lowest first
	Duties  []Duty          // offered bits that ask something of the device, lowest first

	// BlockSize is what a driver takes for the logical block size, in bytes. It is
	// a sector if BLK_SIZE is not offered.
	BlockSize uint32
}

// Loss is a wanted feature that is not offered, and why, in a sentence.
type Loss struct {
	Feature virtio.Feature
	Reason  string
}

// Duty is what the device must hold to because a feature is offered, whether it
// was wanted or came with its twin.
type Duty struct {
	Feature virtio.Feature
	Wanted  bool
	Text    string
}

// ErrMirror is the cause of Solve's errors: what must be offered cannot be.
var ErrMirror = errors.New("no trap-free device is possible")

// verdict says whether a bit may be offered to a driver whose answer is unknown.
type verdict struct {
	refuse func(Transport) string // why not, "" if it may be; nil: it always may
	duty   string                 // what the device must hold to if it is offered
}

func free() verdict              { return verdict{} }
func served(duty string) verdict { return verdict{duty: duty} }
func never(why string) verdict   { return verdict{refuse: func(Transport) string { return why }} }

func unknown(d string) verdict {
	return never(d + ", and the device cannot know whether it was accepted")
}
func (v verdict) but(d string) verdict { v.duty = d; return v }

func unless(ok func(Transport) bool, why string) verdict {
	return verdict{refuse: func(t Transport) string {
		if ok(t) {
			return ""
		}
		return why
	}}
}

// mirrored is the whole knowledge: one line a bit of the word, with the verdict
// on the bit itself (of block devices, or of rings up to 31) and on its twin 32
// bits above (of transports, or reserved). What the specification or a driver
// gives a new meaning changes in its line. Bits 64 to 127 belong to device types
// (§2.2); block devices have none there and their drivers look at none, so they
// are free to come along; a line whose upper twins get a meaning names it with
// upper.
var mirrored = [32]struct {
	low, high verdict
	upper     [2]verdict // bits n+64 and n+96
}{
	0:  {low: free() /* BARRIER of legacy devices */, high: served("")},
	1:  {low: served("size_max must hold the longest segment the device takes, in bytes"), high: served("ring and buffer addresses are what the host's IOMMU translates")},
	2:  {low: served("seg_max must hold the number of data segments a request may have"), high: unless(packed, "the device does not serve packed virtqueues").but("the first descriptor must be looked at to tell a packed virtqueue from a split one")},
	3:  {low: free(), high: unknown("completions must keep the order of the requests")},
	4:  {low: served("geometry must hold cylinders, heads and sectors that fit the capacity"), high: served("device-side barriers must be real ones")},
	5:  {low: unless(readOnly, "drivers would refuse to write to the disk"), high: served("there must be no SR-IOV capability: drivers take the bit as nothing then")},
	6:  {low: served("blk_size must hold the disk's logical block size"), high: unless(doorbell32, "the doorbell takes only 16 bits of data, and a driver that accepts it writes 32").but("the doorbell must be rung by writes of 16 and of 32 bits")},
	7:  {low: never("it offers SCSI requests, which are not served"), high: unknown("notifications carry a value of the device's instead of the queue's index")},
	8:  {low: free(), high: never("queue_reset must read 1 until the queue has stopped, which memory cannot do")},
	9:  {low: served("flush requests must be served"), high: never("a driver that accepts it sets up an administration queue, which is not there")},
	10: {low: served("topology must count in BlockSize"), high: free()},
	11: {low: served("the writeback byte must be watched"), high: free() /* SUSPEND: no driver knows it yet */},
	12: {low: unless(several, "there is one virtqueue only").but("num_queues must be right"), high: free()},
	13: {low: unless(writable, "the disk is read-only").but("discard requests must be served and their limits right"), high: free()},
	14: {low: unless(writable, "the disk is read-only").but("write-zeroes requests must be served and their limits right"), high: free()},
	15: {low: served("lifetime requests must be served"), high: free()},
	16: {low: unless(writable, "the disk is read-only").but("secure erase requests must be served and their limits right"), high: free()},
	17: {low: never("zoned disks are not served"), high: free()},
	24: {low: never("it is a legacy bit that asks for other interrupts"), high: free()},
	27: {low: free() /* ANY_LAYOUT of legacy devices */, high: free()},
	28: {low: served("indirect tables must be taken whenever a descriptor refers to one"), high: free()},
	29: {low: unknown("notifications are suppressed by index instead of by flag"), high: free()},
	30: {low: never("it is the bit that no device may offer"), high: free()},
}

func packed(t Transport) bool     { return t.PackedRings }
func readOnly(t Transport) bool   { return t.ReadOnly }
func writable(t Transport) bool   { return !t.ReadOnly }
func doorbell32(t Transport) bool { return t.Doorbell32 }
func several(t Transport) bool    { return t.Queues > 1 }

// aftermath is said in addition when a bit is lost: what it means for the user.
func aftermath(f virtio.Feature, word uint32, t Transport) string {
	switch {
	case f == virtioblk.Flush && word&bit(virtioblk.ConfigWCE) != 0:
		return "drivers that know the writeback byte flush all the same"
	case f == virtioblk.Flush:
		return "every write must be durable before it completes"
	case f == virtioblk.BlkSize && t.LogicalBlock > virtioblk.SectorSize:
		return fmt.Sprintf("the host sees blocks of %d bytes where the disk has %d", virtioblk.SectorSize, t.LogicalBlock)
	case f == virtioblk.SegMax:
		return "a request has one data segment"
	case f == virtio.EventIdx:
		return "notifications are suppressed by flag"
	}
	return ""
}

// Solve returns the mirrored word for what is wanted. A bit is in it if one of
// its four meanings is wanted and none of them does harm. The error, which wraps
// ErrMirror, says that what no device can do without is among the losses.
func Solve(wanted virtio.Features, t Transport) (Mirror, error) {
	var m Mirror
	why := map[virtio.Feature]string{}
	for n := range virtio.Feature(32) {
		want := wanted.And(twins(n))
		if want.Empty() {
			continue
		}
		culprit, reason := harm(n, t)
		if reason == "" {
			m.Word |= bit(n)
		}
		for f := range want.All {
			why[f] = explain(f, culprit, reason)
		}
	}
	m.Offered = virtio.Features{m.Word, m.Word, m.Word, m.Word}
	m.BlockSize = virtioblk.SectorSize
	if m.Offered.Has(virtioblk.BlkSize) {
		m.BlockSize = max(t.LogicalBlock, virtioblk.SectorSize)
	}
	for f := range wanted.Minus(m.Offered).All {
		reason := why[f]
		if more := aftermath(f, m.Word, t); more != "" {
			reason += "; " + more
		}
		m.Lost = append(m.Lost, Loss{f, reason})
	}
	for f := range m.Offered.All {
		if d := judge(f).duty; d != "" {
			m.Duties = append(m.Duties, Duty{f, wanted.Has(f), d})
		}
	}
	for _, f := range [...]virtio.Feature{virtio.Version1, virtio.AccessPlatform, virtio.OrderPlatform} {
		if !m.Offered.Has(f) {
			return m, fmt.Errorf("%w: %v is not offered", ErrMirror, f)
		}
	}
	return m, nil
}

func bit(f virtio.Feature) uint32 { return 1 << (f % 32) }

// twins returns the features that share n's bit of the word, n included.
func twins(n virtio.Feature) virtio.Features {
	w := bit(n)
	return virtio.Features{w, w, w, w}
}

func judge(f virtio.Feature) verdict {
	row := &mirrored[f%32]
	return [...]verdict{row.low, row.high, row.upper[0], row.upper[1]}[f/32]
}

// harm returns the first of n's twins that may not be offered, and why.
func harm(n virtio.Feature, t Transport) (virtio.Feature, string) {
	for f := range twins(n).All {
		if v := judge(f); v.refuse != nil {
			if why := v.refuse(t); why != "" {
				return f, why
			}
		}
	}
	return 0, ""
}

func explain(lost, culprit virtio.Feature, reason string) string {
	if lost == culprit {
		return reason
	}
	return fmt.Sprintf("it cannot be offered without %s: %s", name(culprit), reason)
}

// name returns a feature's name with its number.
func name(f virtio.Feature) string {
	s := strings.Trim(virtio.NewFeatures(f).Describe(virtioblk.FeatureNames), "{}")
	if strings.HasPrefix(s, "bit ") {
		return s
	}
	return fmt.Sprintf("%s (bit %d)", s, f)
}

// String describes a loss in a line, with the feature's name.
func (l Loss) String() string { return name(l.Feature) + " is lost: " + l.Reason }

// String describes a duty in a line, with the feature's name.
func (d Duty) String() string { return name(d.Feature) + ": " + d.Text }
