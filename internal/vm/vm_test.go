package vm

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// eachKernel runs the test once for each kernel.
func eachKernel(t *testing.T, test func(t *testing.T, k Kernel)) {
	for _, k := range Kernels() {
		t.Run(k.Name, func(t *testing.T) { test(t, k) })
	}
}

func TestVMScript(t *testing.T) {
	eachKernel(t, func(t *testing.T, k Kernel) {
		res, err := Run(t.Context(), Config{
			Kernel: k,
			Script: "uname -r; echo problem >&2",
		})
		require.NoError(t, err)
		t.Logf("up %v, total %v", res.Up.Round(time.Millisecond), res.Total.Round(time.Millisecond))
		assert.Equal(t, res.Kernel+"\nproblem\n", res.Output)
		assert.Contains(t, res.Console, "Linux version "+res.Kernel)
		assert.Equal(t, 1, res.Ups)
		assert.Contains(t, res.Firmware, "SeaBIOS")
	})
}

func TestVMScriptFails(t *testing.T) {
	res, err := Run(t.Context(), Config{Script: "echo here; exit 3"})
	var exit *ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 3, exit.Status)
	assert.Equal(t, 3, res.Status)
	assert.Equal(t, "here\n", res.Output)
}

func TestVMSilenceIsAnError(t *testing.T) {
	_, err := Run(t.Context(), Config{Script: "poweroff -f"})
	assert.ErrorContains(t, err, "ended without a report")

	_, err = Run(t.Context(), Config{Script: "echo before; sleep 1000", Timeout: 8 * time.Second})
	require.ErrorContains(t, err, "not done within 8s")
	assert.ErrorContains(t, err, "before", "the error shows what the work printed")
}

func TestVMContextEndsGuest(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	v, err := Start(ctx, Config{Script: "say ready; sleep 1000"})
	require.NoError(t, err)
	require.NoError(t, v.Expect(ctx, "ready"))
	mine := errors.New("changed my mind")
	cancel(mine)
	_, err = v.Wait()
	assert.ErrorIs(t, err, mine)
}
