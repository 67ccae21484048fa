package vm

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOutputIsTakenWhenItsEndIsThere(t *testing.T) {
	o := newPrinted()
	const end = "\n==> 1 "
	for _, part := range []string{"some\n", "text", "\n==>", " 1 ", "3"} {
		_, status, changed := o.take(end)
		require.Empty(t, status)
		_, _ = o.Write([]byte(part))
		<-changed
	}
	_, status, _ := o.take(end)
	require.Empty(t, status, "the line has no end")
	_, _ = o.Write([]byte("\nof the next"))
	text, status, _ := o.take(end)
	require.Equal(t, "some\ntext", text)
	require.Equal(t, "3", status)
	_, _ = o.Write([]byte("\n==> 2 0\n"))
	text, status, _ = o.take("\n==> 2 ")
	require.Equal(t, "of the next", text)
	require.NoError(t, judge(text, status))
	var f *Failure
	require.ErrorAs(t, judge("text", "3"), &f)
	require.Equal(t, Failure{3, "text"}, *f)
	require.Error(t, judge("", "?"))
}
