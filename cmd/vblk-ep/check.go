package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/hashicorp/go-multierror"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
)

const checkUsage = `vblk-ep check says what serve would export with the same options, and every
reason why it would not. Nothing is exported and nothing is changed; an endpoint
controller is asked through a function that no host sees.

Usage:
  vblk-ep check --disk PATH[,OPTION...] [OPTION...]

Examples:
  vblk-ep check --disk /dev/nvme0n1p2
  vblk-ep check --disk disk.img,queues=4 --epc vfio-user:/tmp/vblk.sock --json

Exit codes: 0 all disks can be exported; 1 one of them cannot; 2 the command
line is wrong.
`

// verdict is what check says of one disk.
type verdict struct {
	Disk     string   `json:"disk"`
	OK       bool     `json:"ok"`
	Problems []string `json:"problems"`
	Export   *summary `json:"export,omitempty"`
}

func check(args []string, out, errOut io.Writer) (err error) {
	var o options
	if err := o.parse("check", checkUsage, args, out); err != nil {
		return err
	}
	var verdicts []verdict
	log := o.logger(errOut)
	slots := newTrial(&o, log)
	opened := slots.open()
	problems := multierror.Append(nil, opened)
	defer func() { err = joinErrors(err, slots.close()) }()
	for i, d := range o.disks {
		d.open.Log, d.offer.Log = log, log
		export, err := tryExport(d, slots, i)
		problems = multierror.Append(problems, err)
		said := append(append([]string{}, causes(opened)...), causes(err)...)
		verdicts = append(verdicts, verdict{Disk: d.path, OK: len(said) == 0, Problems: said, Export: export})
		if export != nil && !o.json {
			export.print(out)
			export.printController(out)
		}
	}
	if o.json {
		if err := json.NewEncoder(out).Encode(map[string]any{"disks": verdicts}); err != nil {
			return err
		}
	} else if problems.ErrorOrNil() == nil {
		fmt.Fprintln(out, "ready to be served")
	}
	return problems.ErrorOrNil()
}

// tryExport does all that serve does, short of serving. What it says of the disk it
// says without a slot, too.
func tryExport(d diskSpec, slots slots, i int) (*summary, error) {
	at, room, unplaced := slots.add(i, d.open.Log)
	d.offer.Room = room
	store, err := disk.Open(d.path, d.open)
	if err != nil {
		return nil, joinErrors(unplaced, err)
	}
	defer store.Close()
	fn, err := epfbackend.New(store, d.offer)
	if err != nil {
		return nil, joinErrors(unplaced, err)
	}
	defer fn.Close()
	s, err := summarize(fn, store, at)
	if err != nil {
		return nil, joinErrors(unplaced, err)
	}
	return &s, unplaced
}
