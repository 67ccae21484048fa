package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/vblk-ep/vblk-ep/internal/bench"
)

// What is measured on each disk.
var (
	fileWorks = []work{
		{"randread", "4k", 1},
		{"randread", "4k", 32},
		{"randwrite", "4k", 32},
		{"read", "512k", 8},
		{"write", "512k", 8},
	}
	shortWorks = []work{
		{"randread", "4k", 1},
		{"randread", "4k", 32},
		{"read", "512k", 8},
	}
	nullWorks = []work{
		{"randread", "4k", 1},
		{"randread", "4k", 32},
		{"randread", "4k", 128},
	}
)

// compareHost measures all that needs no guest.
func (l *lab) compareHost(ctx context.Context, rep *report) (err error) {
	for _, set := range []func(context.Context) (*table, error){l.fileTable, l.tmpfsTable, l.loopTable, l.nullTable} {
		t, err := set(ctx)
		if err != nil {
			return err
		}
		if err := t.measure(ctx, l.rounds, &l.quiet); err != nil {
			return err
		}
		rep.Tables = append(rep.Tables, t)
	}
	rep.Idle, err = l.idle(ctx)
	return err
}

func (l *lab) fileTable(ctx context.Context) (*table, error) {
	path, err := l.file(l.dir, "file.img")
	if err != nil {
		return nil, err
	}
	other, err := l.file(l.dir, "nbd.img")
	if err != nil {
		return nil, err
	}
	socket, err := l.daemonNBD(ctx, other)
	return &table{
		Name: "file", About: "A file on the real disk, O_DIRECT everywhere.",
		works: fileWorks,
		contenders: []contender{
			l.fio("fio", direct(path)...),
			l.ours("vblk-ep", path),
			l.ours("vblk-ep, packed", path, "--ring", "packed"),
			l.ours("vblk-ep, interrupts", path, "--", "--poll", "off"),
			l.ours("vblk-ep, polling", path, "--hipri", "--", "--poll", "always"),
			l.ours("vblk-ep, trap-free", path, "--trap-free", "--ring", "packed"),
			l.fio("NBD, qemu-storage-daemon", nbd(socket)...),
		},
	}, err
}

func (l *lab) tmpfsTable(ctx context.Context) (*table, error) {
	dir, err := l.tmpfs()
	if err != nil {
		return nil, err
	}
	path, err := l.file(dir, "file.img")
	if err != nil {
		return nil, err
	}
	socket, err := l.nbdkit(ctx, "file", path)
	return &table{
		Name: "tmpfs", About: "A file in memory.",
		works: shortWorks,
		contenders: []contender{
			l.fio("fio", direct(path)...),
			l.ours("vblk-ep", path),
			l.ours("vblk-ep, trap-free", path, "--trap-free", "--ring", "packed"),
			l.fio("NBD, nbdkit", nbd(socket)...),
		},
	}, err
}

func (l *lab) loopTable(ctx context.Context) (*table, error) {
	path, err := l.file(l.dir, "loop.img")
	if err != nil {
		return nil, err
	}
	device, err := l.loop(ctx, path)
	return &table{
		Name: "loop", About: "A loop device over a file on the real disk, direct I/O at both levels.",
		works: shortWorks,
		contenders: []contender{
			l.fio("fio", direct(device)...),
			l.ours("vblk-ep", device),
			l.ours("vblk-ep, trap-free", device, "--trap-free", "--ring", "packed"),
		},
	}, err
}

// nullTable has no limit to compare with: the disk does nothing. Server and client
// have a processor each, where pinned.
func (l *lab) nullTable(ctx context.Context) (*table, error) {
	socket, err := l.nbdkit(ctx, "null", "1G")
	const disk = "null:1G"
	// Against a polling server, small batches keep both sides busy at the same time.
	const batches = "--iodepth-batch-complete-max"
	pinned := []string{"--server-cpus", "0", "--cpus-allowed", "1"}
	with := func(flags ...string) []string { return append(slices.Clone(pinned), flags...) }
	return &table{
		Name: "null", About: "A disk that does nothing: what the way to it costs. Server and client are pinned to a processor each.",
		works: nullWorks,
		contenders: []contender{
			l.ours("vblk-ep", disk, with()...),
			l.ours("vblk-ep, packed", disk, with("--ring", "packed")...),
			l.ours("vblk-ep, interrupts", disk, with("--", "--poll", "off")...),
			l.ours("vblk-ep, polling", disk, with(batches, "32", "--hipri", "--", "--poll", "always")...),
			l.ours("vblk-ep, polling server", disk, with(batches, "32", "--", "--poll", "always")...),
			l.ours("vblk-ep, trap-free", disk, with("--trap-free", "--ring", "packed")...),
			l.ours("vblk-ep, two queues", disk, with("--queues", "2")...),
			l.fio("NBD, nbdkit", nbd(socket)...),
		},
	}, err
}

// idleTime is how long an idle server is watched at most.
const idleTime = 5 * time.Second

// idleModes are the kinds of registers.
var idleModes = []string{"trapped", "trap-free"}

// idle measures what a server with a live driver costs that asks for nothing, in
// percent of a core.
func (l *lab) idle(ctx context.Context) (map[string]float64, error) {
	result := map[string]float64{}
	for _, name := range idleModes {
		slot := ""
		if name == "trap-free" {
			slot = ",trap-free"
		}
		socket := filepath.Join(l.run, name)
		if err := l.serve(ctx, socket, l.program, "serve", "--json", "--disk", "null:1G", "--epc", "vfio-user:"+socket+slot); err != nil {
			return nil, err
		}
		used, err := watchIdle(ctx, socket, min(idleTime, 5*l.runtime))
		if err != nil {
			return nil, fmt.Errorf("idle, %s: %w", name, err)
		}
		result[name] = used
	}
	return result, nil
}

func watchIdle(ctx context.Context, socket string, d time.Duration) (percent float64, err error) {
	t, err := bench.Connect(ctx, socket, bench.Setup{Queues: 1, Depth: 1, Block: 4096})
	if err != nil {
		return 0, err
	}
	defer t.Close()
	time.Sleep(time.Second) // what a start makes is over
	before, err := bench.ProcessTime(t.Server)
	if err != nil {
		return 0, err
	}
	time.Sleep(d)
	after, err := bench.ProcessTime(t.Server)
	return 100 * float64(after-before) / float64(d), err
}
