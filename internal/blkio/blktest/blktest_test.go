package blktest_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vblk-ep/vblk-ep/internal/blkio/blktest"
)

const victim = "VBLK_BLKTEST_VICTIM"

// Nothing of a test that is killed stays bound.
func TestLoopOfAKilledTest(t *testing.T) {
	if file := os.Getenv(victim); file != "" {
		fmt.Println(blktest.Loop(t, file, blktest.LoopOptions{}))
		select {}
	}
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), victim+"="+blktest.File(t, 1<<20))
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	device, err := bufio.NewReader(out).ReadString('\n')
	bound := filepath.Join("/sys/block", filepath.Base(strings.TrimSpace(device)), "loop/backing_file")
	seen := func() bool { _, err := os.Stat(bound); return err == nil }
	was := seen()
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.NoError(t, err)
	require.True(t, was, device)
	require.Eventually(t, func() bool { return !seen() }, 10*time.Second, time.Millisecond)
}
