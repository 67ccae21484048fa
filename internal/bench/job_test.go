package bench

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestJobsThatMakeNoSense(t *testing.T) {
	good := Job{ReadMix: 100, Block: 4096, Depth: 32, Runtime: time.Second}
	require.NoError(t, good.Check())
	for want, spoil := range map[string]func(j *Job){
		"choose 0 to 100":                func(j *Job) { j.ReadMix = 101 },
		"bs 0: choose a multiple of 512": func(j *Job) { j.Block = 0 },
		"bs 1000: choose":                func(j *Job) { j.Block = 1000 },
		"iodepth 0: choose 1 to":         func(j *Job) { j.Depth = 0 },
		"offset 100: choose":             func(j *Job) { j.Offset = 100 },
		"size -1 is negative":            func(j *Job) { j.Size = -1 },
		"choose times above 0":           func(j *Job) { j.Runtime = 0 },
		"this one only reads":            func(j *Job) { j.Verify = true },
	} {
		j := good
		spoil(&j)
		err := j.Check()
		require.ErrorIs(t, err, ErrJob, want)
		require.ErrorContains(t, err, want)
	}
}

func TestLanesDivideTheDisk(t *testing.T) {
	const disk = 1 << 20
	j := Job{Block: 4096, Depth: 8}
	list, err := j.spans(disk, 3)
	require.NoError(t, err)
	require.Equal(t, []span{{0, 85}, {85, 85}, {170, 85}}, list)

	j.Offset, j.Size = 64<<10, 128<<10
	list, err = j.spans(disk, 2)
	require.NoError(t, err)
	require.Equal(t, []span{{0, 16}, {16, 16}}, list)

	for _, c := range []struct {
		j     Job
		lanes int
		want  string
	}{
		{Job{Block: 4096, Depth: 1, Offset: disk - 4096, Size: 8192}, 1, "offset and size end at 1052672, and the disk has 1048576"},
		{Job{Block: 4096, Depth: 1, Offset: 2 * disk}, 1, "too few"},
		{Job{Block: disk, Depth: 1}, 2, "too few"},
		{Job{Block: 4096, Depth: 129, Verify: true}, 1, "too few"},
	} {
		_, err := c.j.spans(disk, c.lanes)
		require.ErrorIs(t, err, ErrJob, c.want)
		require.ErrorContains(t, err, c.want)
	}
	_, err = (&Job{Block: 512, Depth: 1, Verify: true}).spans(1<<40, 1)
	require.ErrorContains(t, err, "keeps track of at most")
}
