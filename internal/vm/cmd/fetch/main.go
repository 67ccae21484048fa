// Command fetch fills the cache of the guest harness, so that tests that boot
// guests need no network.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/vblk-ep/vblk-ep/internal/vm"
)

func main() {
	all := flag.Bool("all", false, "also fetch what arm64 guests and other firmware need")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	fetch := vm.Fetch
	if *all {
		fetch = vm.FetchAll
	}
	err := fetch(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
