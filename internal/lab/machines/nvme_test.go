package machines

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/lab"
)

// nvme starts a pair whose endpoint is the kernel's NVMe target with a disk of
// its own, and waits for the root complex's stock driver to find it.
func nvme(t *testing.T) *rig { t.Helper(); return nvmeWith(t, func(*Config) {}) }

func nvmeWith(t *testing.T, edit func(*Config)) *rig {
	t.Helper()
	r := start(t, "newest", func(c *Config) {
		image := filepath.Join(t.TempDir(), "disk")
		require.NoError(t, os.WriteFile(image, nil, 0o600))
		require.NoError(t, os.Truncate(image, 256<<20))
		c.EP.Args = []string{"-blockdev", "driver=file,node-name=disk,filename=" + image}
		c.EP.Devices = []string{"virtio-blk-pci,drive=disk,disable-legacy=on"}
		edit(c)
	})
	r.ep("sh epf-nvme start /dev/vda")
	r.rc("within 60 test -b /dev/nvme0n1")
	return r
}

func TestVMNVMeTarget(t *testing.T) {
	r := nvme(t)
	t.Log(r.rc(`
		lspci -nn -s 1:
		grep nvme /proc/interrupts
		cat /sys/block/nvme0n1/size
		mkfs.ext4 -q /dev/nvme0n1
		mount -t ext4 /dev/nvme0n1 /mnt
		dd if=/dev/urandom of=/mnt/file bs=1M count=32 status=none
		sum=$(sha256sum </mnt/file)
		umount /mnt
		e2fsck -f -n /dev/nvme0n1
		echo 3 >/proc/sys/vm/drop_caches
		mount -t ext4 /dev/nvme0n1 /mnt
		[ "$sum" = "$(sha256sum </mnt/file)" ]
		umount /mnt
		fio --name=v --filename=/dev/nvme0n1 --rw=randrw --bsrange=4k-256k --size=64m \
			--ioengine=io_uring --iodepth=16 --direct=1 --verify=crc32c --randseed=1 --minimal >/dev/null
	`))
}

// figures of one fio job that reads.
type figures struct {
	iops, mbs  float64
	operations float64
	per        lab.Stats
}

func (r *rig) measure(job string) figures {
	before := r.Lab.Stats()
	out := r.rc("fio --name=m --filename=/dev/nvme0n1 --ioengine=io_uring --direct=1 --randrepeat=0 --time_based " +
		"--runtime=5 --output-format=json " + job)
	after := r.Lab.Stats()
	var report struct {
		Jobs []struct {
			Read struct {
				IOPS    float64 `json:"iops"`
				BW      float64 `json:"bw_bytes"`
				TotalIO float64 `json:"total_ios"`
			} `json:"read"`
		} `json:"jobs"`
	}
	require.NoError(r.t, json.Unmarshal([]byte(out), &report))
	read := report.Jobs[0].Read
	require.NotZero(r.t, read.TotalIO)
	return figures{read.IOPS, read.BW / 1e6, read.TotalIO, lab.Stats{
		DMATransfers: after.DMATransfers - before.DMATransfers, Interrupts: after.Interrupts - before.Interrupts,
		DMAInterrupts: after.DMAInterrupts - before.DMAInterrupts, InboundWrites: after.InboundWrites - before.InboundWrites,
		InboundReads: after.InboundReads - before.InboundReads, OutboundReads: after.OutboundReads - before.OutboundReads,
		OutboundWrites: after.OutboundWrites - before.OutboundWrites,
		RegisterReads:  after.RegisterReads - before.RegisterReads, RegisterWrites: after.RegisterWrites - before.RegisterWrites,
	}}
}

// TestVMNVMeFigures records what the peer reaches on this link. The times say
// nothing about silicon; the messages a request do.
func TestVMNVMeFigures(t *testing.T) {
	r := nvme(t)
	for _, job := range []string{
		"--rw=randread --bs=4k --iodepth=1", "--rw=randread --bs=4k --iodepth=32", "--rw=read --bs=512k --iodepth=4",
	} {
		f := r.measure(job)
		t.Logf("%s: %.0f/s, %.1f MB/s; a request: %.2f DMA transfers, %.2f DMA interrupts, %.2f interrupts to the RC, "+
			"%.2f trapped writes and %.2f reads of the RC, %.2f outbound reads and %.2f writes of the endpoint, "+
			"%.2f reads and %.2f writes of the controller's registers", job, f.iops, f.mbs,
			float64(f.per.DMATransfers)/f.operations, float64(f.per.DMAInterrupts)/f.operations,
			float64(f.per.Interrupts)/f.operations, float64(f.per.InboundWrites)/f.operations,
			float64(f.per.InboundReads)/f.operations, float64(f.per.OutboundReads)/f.operations,
			float64(f.per.OutboundWrites)/f.operations,
			float64(f.per.RegisterReads)/f.operations, float64(f.per.RegisterWrites)/f.operations)
	}
}
