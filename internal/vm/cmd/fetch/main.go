// Command fetch fills the cache of the guest harness, so that tests that boot
// guests need no network, and finds in it what scripts build from.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

func main() {
	all := flag.Bool("all", false, "also fetch what arm64 guests and other firmware need")
	kernel := flag.String("version", "", "only fetch the kernel of this `name` (newest, debian12, arm64), and print its version")
	unpack := flag.Bool("unpack", false, "only unpack the packages that are the arguments, and print the folder")
	arch := flag.String("arch", runtime.GOARCH, "the processor that -unpack is for")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	out, err := "", error(nil)
	switch {
	case *kernel != "":
		var k vm.Kernel
		if k, err = vm.FindKernel(*kernel); err == nil {
			out, err = vm.KernelVersion(ctx, k)
		}
	case *unpack:
		out, err = vm.Unpack(ctx, *arch, flag.Args()...)
	case *all:
		err = vm.FetchAll(ctx)
	default:
		err = vm.Fetch(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if out != "" {
		fmt.Println(out)
	}
}
