package disk

import (
	"fmt"
	"testing"

	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
)

func BenchmarkRandomRead4K(b *testing.B) {
	const size = 64 * mib
	file := blktest.File(b, size)
	for _, disk := range []string{"file", "null"} {
		for _, kind := range []EngineKind{URing, Plain} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("%s/%s/depth=%d", disk, kind, depth), func(b *testing.B) {
					path := map[string]string{"file": file, "null": "null:64M"}[disk]
					r := newRig(b, path, Options{}, kind, depth)
					if disk == "file" {
						fill(r, size)
					}
					randomReads(b, r, size, depth)
				})
			}
		}
	}
}

func fill(r *rig, size int64) {
	mem := noise(aligned(r.t, mib))
	for off := int64(0); off < size; off += mib {
		r.must(transfer(Write, off, mem))
	}
}

func randomReads(b *testing.B, r *rig, size int64, depth int) {
	mem := aligned(b, depth*4096)
	pos := int64(0)
	start := func(io *IO) {
		pos = (pos + 4096*7919) % size
		io.Offset = pos
		r.e.Start(io)
	}
	ios := make([]*IO, depth)
	for i := range ios {
		ios[i] = transfer(Read, 0, mem[i*4096:(i+1)*4096])
	}
	b.ReportAllocs()
	b.ResetTimer()
	started := 0
	for _, io := range ios[:min(depth, b.N)] {
		start(io)
		started++
	}
	for n := 0; n < b.N; {
		done, _, err := r.e.Wait(true)
		if err != nil {
			b.Fatal(err)
		}
		n += len(done)
		for _, io := range done {
			if io.Err != nil {
				b.Fatal(io.Err)
			}
			if started < b.N {
				start(io)
				started++
			}
		}
	}
}
