package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/go-multierror"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/epfbackend/epc/vfiouser"
)

const checkUsage = `vblk-ep check says what serve would export with the same options, and every
reason why it would not. Nothing is exported and nothing is changed.

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

func check(args []string, out, errOut io.Writer) error {
	var o options
	if err := o.parse("check", checkUsage, args, out); err != nil {
		return err
	}
	sockets, err := socketPaths(o.slot, o.disks)
	if errors.Is(err, errUsage) {
		return err
	}
	var verdicts []verdict
	var problems *multierror.Error
	if err != nil {
		problems = multierror.Append(problems, err)
		sockets = defaultSockets(o.disks)
	}
	log := o.logger(errOut)
	for i, d := range o.disks {
		d.open.Log, d.offer.Log = log, log
		export, err := tryExport(d, sockets[i])
		v := verdict{Disk: d.path, OK: err.ErrorOrNil() == nil, Problems: []string{}, Export: export}
		for _, e := range err.WrappedErrors() {
			v.Problems = append(v.Problems, e.Error())
			problems = multierror.Append(problems, e)
		}
		verdicts = append(verdicts, v)
		if export != nil && !o.json {
			export.print(out)
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

// tryExport does all that serve does, short of taking the socket.
func tryExport(d diskSpec, socket string) (*summary, *multierror.Error) {
	var errs *multierror.Error
	errs = multierror.Append(errs, vfiouser.CheckPath(socket))
	store, err := disk.Open(d.path, d.open)
	if err != nil {
		return nil, multierror.Append(errs, err)
	}
	defer store.Close()
	fn, err := epfbackend.New(store, d.offer)
	if err != nil {
		return nil, multierror.Append(errs, err)
	}
	defer fn.Close()
	s, err := summarize(fn, store, socket)
	if err != nil {
		return nil, multierror.Append(errs, err)
	}
	return &s, errs
}
