package guesttest

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/guesttest/suite"
	"github.com/vblk-ep/vblk-ep/internal/vm"
)

// TestVMWithoutMSI has the driver use the interrupt pin, by a kernel that has
// been told to leave message-signalled interrupts alone.
func TestVMWithoutMSI(t *testing.T) {
	eachKernel(t, func(t *testing.T, k vm.Kernel) {
		s := serve(t, checked, image(t, "a.img", 32*mib)+",queues=2", image(t, "b.img", 32*mib))
		g := boot(t, vm.Config{Kernel: k, Cmdline: "pci=nomsi", Devices: s.devices()})
		out := g.sh(t, `
			for d in vda vdb; do
				[ $(ls $(pci $d)/msi_irqs 2>/dev/null | wc -l) = 0 ]
				fio --name=$d --filename=/dev/$d --direct=1 --rw=randrw --bsrange=4k-64k --size=8m --numjobs=2 \
					--offset_increment=16m --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 >/tmp/$d 2>&1 &
			done
			wait %1 || { cat /tmp/vda; exit 1; }
			wait %2 || { cat /tmp/vdb; exit 1; }
			for d in vda vdb; do
				grep $(virtio $d) /proc/interrupts
			done
		`)
		assert.Regexp(t, `\d{2,} .*(IO-APIC|PCI).*fasteoi.*virtio`, out)
		assert.NotContains(t, out, "MSI")
		g.powerOff(t)
		s.stop(t)
	})
}

// TestVMSeveralGuests has one server serve two guests, one disk each. The end of
// one is nothing to the other.
func TestVMSeveralGuests(t *testing.T) {
	parallel(t, 2)
	disks := []string{image(t, "a.img", 64*mib), image(t, "b.img", 64*mib)}
	s := serve(t, checked, disks[0]+",serial=FIRST", disks[1]+",serial=SECOND")
	assert.NotEqual(t, s.exports[0].Socket, s.exports[1].Socket)
	devices := s.devices()
	var gs []*guest
	for i, k := range []vm.Kernel{vm.Kernels()[0], vm.Kernels()[len(vm.Kernels())-1]} {
		g := boot(t, vm.Config{Kernel: k, Devices: devices[i : i+1]})
		assert.Equal(t, s.exports[i].Serial, g.value(t, "cat /sys/block/vda/serial"))
		gs = append(gs, g)
	}
	for i, g := range gs {
		g.tell(t, fmt.Sprintf(`
			fio --name=v --filename=/dev/vda --direct=1 --rw=randrw --bsrange=4k-64k --size=16m --offset=1m \
				--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1
			printf 'guest %d' | dd of=/dev/vda bs=512 conv=sync,fsync status=none
		`, i))
	}
	for _, g := range gs {
		_, err := g.Listen(t.Context())
		assert.NoError(t, err)
	}
	suite.Image(gs[1].sh, "vda", disks[1]).Load(t)
	gs[1].Kill()
	gs[0].sh(t, `
		fio --name=v --filename=/dev/vda --direct=1 --rw=randrw --bsrange=4k-64k --size=8m --offset=24m \
			--ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1
	`)
	gs[0].powerOff(t)
	s.stop(t)
	for i, d := range disks {
		want := fmt.Sprintf("guest %d", i)
		assert.Equal(t, want, string(content(t, d, 0, int64(len(want)))))
	}
}

const (
	memoryLimit  = 64 * mib
	memoryGrowth = 3 * mib // between the end of the warm-up and the end

	warmUp, loadTime = 10_000, 25_000 // requests
)

// TestVMMemory bounds the memory of the program as it is shipped, with four
// queues of 256 under load from four processors.
func TestVMMemory(t *testing.T) {
	parallel(t, 1)
	s := serve(t, shipped, image(t, "disk.img", 256*mib)+",queues=4,queue-size=256")
	idle := s.memory(t)
	g := boot(t, vm.Config{CPUs: 4, Devices: s.devices()})
	g.sh(t, `
		fio --name=load --filename=/dev/vda --direct=1 --rw=randrw --bsrange=4k-128k --size=64m --offset_increment=64m \
			--numjobs=4 --ioengine=libaio --iodepth=256 --iodepth_batch_complete_min=8 --time_based --runtime=3000 \
			--cpus_allowed=0-3 --cpus_allowed_policy=split --group_reporting --output-format=terse >/tmp/load 2>&1 &
	`)
	most := int64(0)
	// until returns the server's memory after so many requests.
	until := func(requests int) (last int64) {
		for done := 0; done < requests; {
			var err error
			done, err = strconv.Atoi(g.value(t, "awk '{ print $1 + $5 }' /sys/block/vda/stat"))
			require.NoError(t, err)
			last = s.memory(t)
			most = max(most, last)
		}
		return last
	}
	warm := until(warmUp)
	last := until(warmUp + loadTime)
	g.sh(t, "killall -INT fio; within 180 sh -c '! pidof fio >/dev/null'; ! grep -i error /tmp/load")
	t.Logf("memory: idle %d KiB, warm %d KiB, at most %d KiB, at the end %d KiB", idle>>10, warm>>10, most>>10, last>>10)
	assert.Less(t, most, int64(memoryLimit))
	assert.Less(t, last-warm, int64(memoryGrowth))
	g.powerOff(t)
	s.stop(t)
}
