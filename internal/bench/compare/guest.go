package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

//go:embed guest.sh
var guestScript string

var guestWorks = []work{
	{"randread", "4k", 32},
	{"read", "512k", 8},
	{"randwrite", "4k", 32},
}

// guestTable compares disks of one guest: QEMU's own virtio-blk in a thread of its
// own, the storage daemon's vhost-user-blk, and ours, each with one queue, on a file
// of its own on the real disk. The same fio jobs run on each in turn.
func (l *lab) guestTable(ctx context.Context) (*table, error) {
	var paths [3]string
	for i, name := range []string{"qemu.img", "vhost.img", "ours.img"} {
		path, err := l.file(l.dir, name)
		if err != nil {
			return nil, err
		}
		paths[i] = path
	}
	vhost, slot := filepath.Join(l.run, "vhost"), filepath.Join(l.run, "slot")
	if err := l.daemon(ctx, paths[1], vhost, "--export",
		"type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,addr.type=unix,addr.path="+vhost); err != nil {
		return nil, err
	}
	if err := l.serve(ctx, slot, l.program, "serve", "--json", "--disk", paths[2], "--epc", "vfio-user:"+slot); err != nil {
		return nil, err
	}
	guest := vm.Config{
		Memory: 768, CPUs: 2,
		Script: l.script(),
		Args: []string{
			"-blockdev", "driver=file,node-name=own,filename=" + paths[0] + ",aio=io_uring,cache.direct=on,cache.no-flush=off",
			"-object", "iothread,id=own",
			"-chardev", "socket,id=vhost,path=" + vhost,
		},
		Devices: []string{
			"virtio-blk-pci,drive=own,iothread=own,num-queues=1,addr=10",
			"vhost-user-blk-pci,chardev=vhost,num-queues=1,addr=11",
			vm.VFIOUser(slot, vm.Prop{Name: "addr", Value: "12"}),
		},
		Timeout: 2*time.Minute + 2*time.Duration(l.rounds*len(guestWorks)*len(paths))*(l.runtime+ramp+5*time.Second),
	}
	fmt.Fprintln(os.Stderr, "guest: three disks, all works in all rounds")
	res, err := vm.Run(ctx, guest)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, res.Output)
	}
	return readGuest(res.Output)
}

// guestDisks are the contenders, by the PCI address of their device.
var guestDisks = []struct{ address, name string }{
	{"10", "QEMU virtio-blk"}, {"11", "vhost-user-blk, qemu-storage-daemon"}, {"12", "vblk-ep"},
}

// script is what the guest does.
func (l *lab) script() string {
	var s strings.Builder
	s.WriteString(guestScript)
	for range l.rounds {
		for i, w := range guestWorks {
			for _, d := range guestDisks {
				fmt.Fprintf(&s, "job %d %s %s\n", i, d.address, strings.Join(fioArgs(w, l.runtime, "--direct=1", "--ioengine=libaio"), " "))
			}
		}
	}
	return s.String()
}

// readGuest makes a table of what the script printed: before each job's JSON a line
// "@@ WORK ADDRESS".
func readGuest(out string) (*table, error) {
	t := &table{
		Name:  "guest",
		About: "Three disks of one guest, each a file on the real disk, O_DIRECT, one queue, the same fio job (libaio).",
	}
	for _, w := range guestWorks {
		b := &block{Work: w}
		for _, d := range guestDisks {
			b.Rows = append(b.Rows, &row{Name: d.name})
		}
		t.Blocks = append(t.Blocks, b)
	}
	jobs := strings.Split(out, "@@ ")[1:]
	if len(jobs) == 0 || len(jobs)%(len(guestWorks)*len(guestDisks)) != 0 {
		return nil, fmt.Errorf("the guest ran %d jobs:\n%s", len(jobs), out)
	}
	for _, text := range jobs {
		var i int
		var address string
		if _, err := fmt.Sscan(text, &i, &address); err != nil {
			return nil, fmt.Errorf("the guest's %q: %w", text, err)
		}
		s, err := parseFio([]byte(text))
		if err != nil {
			return nil, err
		}
		for k, d := range guestDisks {
			if d.address == address {
				r := t.Blocks[i].Rows[k]
				r.Samples = append(r.Samples, s)
			}
		}
	}
	t.conclude()
	return t, nil
}
