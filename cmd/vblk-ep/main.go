package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // what was asked for could not be done
	exitUsage  = 2 // what was asked for makes no sense
)

const usage = `vblk-ep exports disks over PCIe as virtio-blk devices.

Usage:
  vblk-ep serve --disk PATH[,OPTION...]   export a disk until stopped
  vblk-ep check --disk PATH[,OPTION...]   say what would be exported, and what is in the way
  vblk-ep bench --disk PATH[,OPTION...]   load it as a host would, and say how fast it is
  vblk-ep version                         say which version this is

Run 'vblk-ep COMMAND --help' for the options of a command.

Exit codes: 0 done; 1 it could not be done; 2 the command line is wrong.
`

// errUsage marks an error of the command line.
var errUsage = errors.New("usage")

func usageError(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUsage, fmt.Sprintf(format, args...))
}

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes a command line and returns the exit code.
func run(args []string, out, errOut io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(errOut, usage)
		return exitUsage
	}
	var err error
	switch command, rest := args[0], args[1:]; command {
	case "serve":
		err = serve(rest, out, errOut)
	case "check":
		err = check(rest, out, errOut)
	case "bench":
		err = runBench(rest, out, errOut)
	case "version":
		err = version(rest, out)
	case "help", "-h", "-help", "--help":
		fmt.Fprint(out, usage)
	default:
		err = usageError("unknown command %q: choose serve, check, bench or version", command)
	}
	return report(err, errOut)
}

// report prints err, one line a cause, and returns the exit code it means.
func report(err error, errOut io.Writer) int {
	if err == nil {
		return exitOK
	}
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	for _, cause := range causes(err) {
		fmt.Fprintln(errOut, "vblk-ep:", strings.TrimPrefix(cause, errUsage.Error()+": "))
	}
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}

// causes returns what err says: a line for each of the errors that were reported
// together, after what is said of all of them.
func causes(err error) (lines []string) {
	if err == nil {
		return nil
	}
	before, others := split(err)
	if len(others) == 0 {
		return []string{err.Error()}
	}
	for _, other := range others {
		for _, cause := range causes(other) {
			lines = append(lines, before+cause)
		}
	}
	return lines
}

// split returns the errors that err is about, and what it says before them; none if it
// stands for itself.
func split(err error) (before string, others []error) {
	switch e := err.(type) {
	case interface{ WrappedErrors() []error }: // multierror.Error
		return "", e.WrappedErrors()
	case interface{ Unwrap() []error }:
		others = e.Unwrap()
		if errors.Join(others...).Error() == err.Error() {
			return "", others
		}
		others = others[len(others)-1:] // of fmt.Errorf
	case interface{ Unwrap() error }:
		if others = []error{e.Unwrap()}; others[0] == nil {
			return "", nil
		}
	default:
		return "", nil
	}
	before, ends := strings.CutSuffix(err.Error(), others[0].Error())
	if !ends {
		return "", nil
	}
	return before, others
}
