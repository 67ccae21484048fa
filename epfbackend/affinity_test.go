package epfbackend_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/epfbackend"
	"github.com/vblk-ep/vblk-ep/epfbackend/disk"
	"github.com/vblk-ep/vblk-ep/internal/rc"
)

// where notes on which processors the threads may run that make engines: workers.
type where struct {
	disk.Store
	seen chan unix.CPUSet
}

func (s where) NewEngine(kind disk.EngineKind, depth, doorbell int) (disk.Engine, error) {
	var set unix.CPUSet
	err := unix.SchedGetaffinity(0, &set)
	s.seen <- set
	if err != nil {
		return nil, err
	}
	return s.Store.NewEngine(kind, depth, doorbell)
}

func TestWorkersRunWhereTheyAreTold(t *testing.T) {
	var may unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &may))
	var cpus []int
	for n := 0; len(cpus) < 2 && n < 1024; n++ {
		if may.IsSet(n) {
			cpus = append(cpus, n)
		}
	}
	for _, list := range [][]int{nil, cpus, cpus[:1]} {
		seen := make(chan unix.CPUSet, 3)
		r := newSlot(t, setup{
			options: epfbackend.Options{Queues: 3, CPUs: list},
			wrap:    func(s disk.Store) disk.Store { return where{s, seen} },
		})
		r.negotiate()
		for i := range 3 {
			r.q = r.newQueue(rc.QueueConfig{Index: i})
		}
		require.NoError(t, r.dev.Start())
		got := map[unix.CPUSet]int{}
		want := map[unix.CPUSet]int{}
		for i := range 3 {
			got[<-seen]++
			set := may
			if len(list) > 0 {
				set.Zero()
				set.Set(list[i%len(list)])
			}
			want[set]++
		}
		require.Equal(t, want, got, "%v", list)
		r.alive()
	}
	var now unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &now))
	require.Equal(t, may, now, "other threads are where they were")
	for _, n := range []int{-1, 1023} {
		require.ErrorIs(t, epfbackend.Options{CPUs: []int{n}}.Check(), epfbackend.ErrOption)
	}
}
