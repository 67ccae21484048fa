# Few verbs. 'make test' is what CI runs.

FUZZTIME ?= 10s
VERSION  := $(shell git describe --always --dirty 2>/dev/null)

# Where debugfs, losetup and mkfs.ext4 are; 'su' without '-' leaves it out.
export PATH := $(PATH):/usr/sbin:/sbin

.NOTPARALLEL: # tests with guests need the machine for themselves
.PHONY: build demo test unit guest lint fuzz bench kernel lab lab-test clean

build: ## bin/vblk-ep
	CGO_ENABLED=0 go build -trimpath -ldflags '-X main.release=$(VERSION)' -o bin/vblk-ep ./cmd/vblk-ep

demo: build ## serve a disk image to a stock guest, and look at what it wrote
	scripts/setup demo
	go run ./internal/demo -vblk-ep bin/vblk-ep

test: ## everything: lint, unit tests with the race detector, guests, the lab, a bounded fuzz
	scripts/setup test
	$(MAKE) lint unit guest lab-test fuzz

unit: ## all that needs no guest
	go test -race -timeout 1h -skip '^TestVM' ./...

guest: ## stock kernels and firmware against the real program
	go run ./internal/vm/cmd/fetch -all
	scripts/quiet go test -count=1 -p 1 -timeout 2h -v -run '^TestVM' ./internal/vm ./internal/guesttest

kernel: ## the endpoint's kernel, and what the kernel's own endpoint test needs
	@scripts/kernel ep
	@scripts/kernel rc
	@scripts/kernel rc arm64

lab: ## two guests on a PCIe link of their own, with consoles: docs/lab.md
	go run ./internal/lab/cmd

lab-test: kernel ## what the kernel's own endpoint functions and drivers do on that link
	scripts/quiet go test -count=1 -timeout 2h -v -run '^TestVM' -p 1 ./internal/lab/machines ./internal/lab/cmd

lint: ## go vet for both machines, staticcheck, gofumpt
	go vet ./...
	GOARCH=arm64 go vet ./...
	go tool staticcheck ./...
	@bad="$$(go tool gofumpt -l .)"; [ -z "$$bad" ] || { echo "run 'go tool gofumpt -w .' for:"; echo "$$bad"; exit 1; }

fuzz: ## each fuzz target for FUZZTIME
	scripts/fuzz $(FUZZTIME)

bench: build ## compare with fio, NBD and QEMU's own disks; BENCHFLAGS='-rounds 1' for a quick try
	scripts/setup bench
	go run ./internal/bench/compare -vblk-ep bin/vblk-ep $(BENCHFLAGS)

clean: ## what the build left in the checkout (guests are cached elsewhere)
	rm -rf bin results
