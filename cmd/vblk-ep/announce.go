package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/vblk-ep/vblk-ep/doorbell"
	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/epfuser"
	"github.com/vblk-ep/vblk-ep/virtio"
	"github.com/vblk-ep/vblk-ep/virtio/virtioblk"
)

// summary is what is exported, as serve and check tell it.
type summary struct {
	Disk          string   `json:"disk"`
	Kind          string   `json:"kind"`
	Bytes         int64    `json:"bytes"`
	LogicalBlock  uint32   `json:"logical_block_bytes"`
	PhysicalBlock uint32   `json:"physical_block_bytes"`
	NativeBlock   uint32   `json:"native_block_bytes"` // logical, of the disk itself
	ReadOnly      bool     `json:"readonly"`
	Direct        bool     `json:"direct"`
	DirectWhy     string   `json:"direct_why"`
	Engine        string   `json:"io"`
	Cache         string   `json:"cache"`
	Serial        string   `json:"serial"`
	Queues        int      `json:"queues"`
	QueueSize     int      `json:"queue_size"`
	TrapFree      bool     `json:"trap_free"`
	Features      string   `json:"features"`
	Lost          []lost   `json:"lost_features"` // trap-free only
	Socket        string   `json:"socket,omitempty"`
	QEMU          []string `json:"qemu_args,omitempty"`

	Controller *epfuser.Report `json:"controller,omitempty"` // of an endpoint
	Slot       string          `json:"slot,omitempty"`       // there
	Left       string          `json:"left,omitempty"`       // what becomes of the function that is there already
}

// lost is a feature that a trap-free function cannot offer.
type lost struct {
	Feature string `json:"feature"`
	Why     string `json:"why"`
}

func summarize(fn *epfbackend.Function, store disk.Store, at slot) (summary, error) {
	info, o := store.Info(), fn.Options()
	engine, err := engineName(store, o.Engine)
	if err != nil {
		return summary{}, err
	}
	s := summary{
		Disk: info.Path, Kind: info.Kind.String(), Bytes: info.Size,
		LogicalBlock: info.LogicalBlock, PhysicalBlock: info.PhysicalBlock,
		NativeBlock: max(info.NativeBlock, info.LogicalBlock),
		ReadOnly:    info.ReadOnly, Direct: info.Direct, DirectWhy: info.DirectWhy,
		Engine: engine, Cache: "writeback", Serial: fn.Serial(),
		Queues: o.Queues, QueueSize: o.QueueSize,
		Features: featureNames(fn.Features()),
		TrapFree: o.TrapFree,
	}
	switch at := at.(type) {
	case nil:
	case *epfuser.Slot:
		s.Slot, s.Controller = at.Path(), at.Report()
		if at.Adopted() {
			s.Left = "taken over"
			if err := at.CanGoOn(fn); err != nil {
				s.Left = fmt.Sprintf("made anew, and the host has to look for it again: %v", err)
			}
		}
	default:
		s.Socket, s.QEMU = at.Path(), qemuArgs(at.Path())
	}
	for _, l := range fn.Lost() {
		s.Lost = append(s.Lost, lost{l.Feature.Name(virtioblk.FeatureNames), l.Reason})
	}
	if o.WriteThrough {
		s.Cache = "writethrough"
	}
	return s, nil
}

// featureNames lists the bits of f that mean something. Where one comes along
// only because its twin is offered, it may mean nothing.
func featureNames(f virtio.Features) string {
	var names []string
	for bit := range f.All {
		if name := bit.Name(virtioblk.FeatureNames); !strings.HasPrefix(name, "bit ") {
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

// engineName finds out by which engine a disk's I/O would be done.
func engineName(store disk.Store, kind disk.EngineKind) (string, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	bell, err := doorbell.NewTrapped()
	if err != nil {
		return "", err
	}
	defer bell.Close()
	engine, err := store.NewEngine(kind, 1, bell.FD())
	if err != nil {
		return "", err
	}
	defer engine.Close()
	return engine.Name(), nil
}

// qemuArgs are the arguments that attach a guest of QEMU to a virtual slot. The
// guest's memory must be shared with us.
func qemuArgs(socket string) []string {
	device, _ := json.Marshal(map[string]any{
		"driver": "vfio-user-pci",
		"socket": map[string]string{"type": "unix", "path": socket},
	})
	return []string{
		"-object", "memory-backend-memfd,id=mem,size=1G,share=on",
		"-machine", "q35,memory-backend=mem",
		"-device", string(device),
	}
}

func (s *summary) print(w io.Writer) {
	access, queues := "read-write", "1 queue"
	if s.ReadOnly {
		access = "read-only"
	}
	if s.Queues > 1 {
		queues = fmt.Sprintf("%d queues", s.Queues)
	}
	io := "buffered"
	if s.Direct {
		io = "direct"
	}
	fmt.Fprintf(w, "%s: %s, %s, %s\n", s.Disk, s.Kind, formatSize(s.Bytes), access)
	emulated := ""
	if s.NativeBlock != s.LogicalBlock {
		emulated = fmt.Sprintf("; emulated, the disk's own are of %d bytes", s.NativeBlock)
	}
	fmt.Fprintf(w, "  blocks    %d bytes logical, %d bytes physical%s\n", s.LogicalBlock, s.PhysicalBlock, emulated)
	fmt.Fprintf(w, "  disk I/O  %s, %s (%s)\n", s.Engine, io, s.DirectWhy)
	fmt.Fprintf(w, "  device    virtio-blk, %s of %d, serial %q, cache %s\n", queues, s.QueueSize, s.Serial, s.Cache)
	fmt.Fprintf(w, "  features  %s\n", s.Features)
	for _, l := range s.Lost {
		fmt.Fprintf(w, "  lost      %s: %s\n", l.Feature, l.Why)
	}
	mode := ""
	if s.TrapFree {
		mode = ", trap-free"
	}
	switch {
	case s.Controller != nil:
		fmt.Fprintf(w, "  function  %s; doorbell: %s; data: %s\n", s.Slot, s.Controller.Doorbell, s.Controller.Data)
		if s.Left != "" {
			fmt.Fprintf(w, "            left by another server, %s\n", s.Left)
		}
	case s.Socket != "":
		fmt.Fprintf(w, "  slot      %s%s\n", s.Socket, mode)
	}
}

// printController prints what the controller can do and what that means.
func (s *summary) printController(w io.Writer) {
	if s.Controller == nil {
		return
	}
	fmt.Fprintf(w, "  endpoint controller %s\n", s.Controller.Name)
	for _, l := range s.Controller.Lines {
		fmt.Fprintf(w, "    %-14s %-28s %s\n", l.What, l.Has, l.Means)
	}
}

func (s *summary) printQEMU(w io.Writer) {
	if s.Controller != nil {
		return
	}
	fmt.Fprintf(w, "  attach a guest (QEMU 10.1 or newer) with\n")
	for i := 0; i < len(s.QEMU); i += 2 {
		value := s.QEMU[i+1]
		if strings.ContainsAny(value, `"{`) {
			value = "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
		}
		fmt.Fprintf(w, "    %s %s%s\n", s.QEMU[i], value, strings.Repeat(" \\", min(len(s.QEMU)-2-i, 1)))
	}
}

// announce says what is exported, once all of it is open.
func announce(w io.Writer, exports []*export, asJSON bool) error {
	all := make([]summary, len(exports))
	for i, e := range exports {
		s, err := summarize(e.fn, e.store, e.slot)
		if err != nil {
			return err
		}
		all[i] = s
	}
	if asJSON {
		return json.NewEncoder(w).Encode(map[string]any{"exports": all})
	}
	for i := range all {
		all[i].print(w)
		all[i].printQEMU(w)
	}
	return nil
}
